/**
 * The one registry of coded errors. Every error that leaves a module carries a code of this table: what happened,
 * what it happened to (the parameters in braces) and what to do about it (the hint).
 *
 * Keep it alphabetical, one line per code. A message names the thing concerned; a hint is an instruction.
 * `httpStatus` is what the API answers when the error ends a request.
 */
export const ERRORS = {
  UND_AGENT_CERT_REVOKED: {
    message: 'The certificate {serial} of source {source} is revoked.',
    hint: "Install the agent again from the appliance's page if the source is to be protected.",
    httpStatus: 403,
  },
  UND_AGENT_CERT_SUPERSEDED: {
    message: 'The certificate {serial} of source {source} was replaced by a newer one.',
    hint: "Only a copy of the source should still use it. If this is the source itself, install the agent again from the appliance's page.",
    httpStatus: 403,
  },
  UND_AGENT_CERT_UNKNOWN: {
    message:
      'The certificate {serial} was not issued by this appliance, or its source was removed.',
    hint: "Install the agent again from the appliance's page.",
    httpStatus: 403,
  },
  UND_AGENT_CLONE: {
    message: 'An agent with the identity of source {source} runs on another machine: {reason}.',
    hint: "If this is a clone of the source, uninstall its agent there. If the source was moved to new hardware on purpose, install the agent again from the appliance's page.",
    httpStatus: 409,
  },
  UND_AGENT_CONFIG_INVALID: {
    message: "The agent's file {file} is not valid: {reason}.",
    hint: "Install the agent again from the appliance's page.",
    httpStatus: 500,
  },
  UND_AGENT_ENROL_FAILED: {
    message: 'The agent could not enrol at {appliance}: {reason}.',
    hint: 'Check the network between source server and appliance; the agent tries again by itself.',
    httpStatus: 502,
  },
  UND_AGENT_FENCED: {
    message:
      '{source} has been failed over: its replica {replica} has taken its place. Its agent stays passive.',
    hint: 'Power this server off, or undo the failover {failover} on the appliance if it is to be the source again.',
    httpStatus: 409,
  },
  UND_AGENT_HELPER_MISSING: {
    message: 'The capture helper of the agent cannot be used: {reason}.',
    hint: "Install the agent again from the appliance's page.",
    httpStatus: 500,
  },
  UND_AGENT_NOT_ENROLLED: {
    message: 'The agent on this machine has not enrolled at an appliance.',
    hint: "Install the agent from the appliance's page.",
    httpStatus: 409,
  },
  UND_AGENT_OFFLINE: {
    message: 'The agent of source {source} is not connected.',
    hint: 'Check that the source server runs and reaches the appliance on its agent port, then try again.',
    httpStatus: 409,
  },
  UND_AGENT_OUTDATED: {
    message: 'The agent of source {source} is too old for this: it does not know {feature}.',
    hint: "Install the agent again from the appliance's page; that needs no new mirror.",
    httpStatus: 409,
  },
  UND_AGENT_PACKAGE_MISSING: {
    message: 'This appliance has no agent to install: {reason}.',
    hint: 'Upgrade the appliance; a development checkout builds it with scripts/build-agent.',
    httpStatus: 500,
  },
  UND_AGENT_PASSIVE: {
    message: 'The agent of source {source} is passive: {reason}.',
    hint: 'A replica or a copy of a source does not replicate. Install the agent again there if this machine is the source now.',
    httpStatus: 409,
  },
  UND_AGENT_SECOND_INSTANCE: {
    message:
      'A second agent with the identity of source {source} tried to connect while the first one is connected.',
    hint: 'One of the two machines is a copy: find it and uninstall its agent. The first one goes on undisturbed.',
    httpStatus: 409,
  },
  UND_AGENT_TLS: {
    message: "A connection from {address} to the agents' port was refused: {reason}.",
    hint: 'Only agents with a certificate of this appliance may connect. If it is a source of this appliance, install its agent again.',
    httpStatus: 403,
  },
  UND_APPLY_NO_SPACE: {
    message: 'Replica disk {disk} of job {job} is out of space.',
    hint: 'Free space in the storage pool of the replica disk, then resume the job. Nothing is lost: the journal keeps what is not applied.',
    httpStatus: 507,
  },
  UND_APPLY_CHECKPOINT_UNKNOWN: {
    message: 'Whether the checkpoint of job {job} was taken is not known: {reason}.',
    hint: 'The appliance asks the target host again by itself. Nothing is lost: the journal keeps what is not applied.',
    httpStatus: 503,
  },
  UND_APPLY_PAUSED: {
    message: 'Job {job} is not applying: {reason}.',
    hint: 'Resume the job, then try again.',
    httpStatus: 409,
  },
  UND_APPLY_WRITE_FAILED: {
    message: 'Writing replica disk {disk} of job {job} failed: {reason}.',
    hint: 'Check the replica disk and its storage pool, then resume the job. Nothing is lost: the journal keeps what is not applied.',
    httpStatus: 500,
  },
  UND_AUTH_FAILED: {
    message: 'Username or password is wrong.',
    hint: 'Check both and try again.',
    httpStatus: 401,
  },
  UND_AUTH_FORBIDDEN: {
    message: 'This needs the role {role}.',
    hint: 'Ask a person with that role.',
    httpStatus: 403,
  },
  UND_AUTH_HEADER_MISSING: {
    message: 'The header x-understudy is missing.',
    hint: 'Send the header `x-understudy: 1` with every request that changes something.',
    httpStatus: 403,
  },
  UND_AUTH_LOCKED: {
    message: 'Too many failed logins.',
    hint: 'Try again in {retrySeconds} seconds.',
    httpStatus: 429,
  },
  UND_AUTH_PASSWORD_CHANGE_NEEDED: {
    message: 'The first-login password has to be changed before anything else.',
    hint: 'Set a password of your own.',
    httpStatus: 403,
  },
  UND_AUTH_PASSWORD_REUSED: {
    message: 'The new password is the current one.',
    hint: 'Choose another password.',
    httpStatus: 400,
  },
  UND_AUTH_PASSWORD_WRONG: {
    message: 'The current password is wrong.',
    hint: 'Type the password that you logged in with.',
    httpStatus: 403,
  },
  UND_AUTH_REQUIRED: { message: 'This needs a login.', hint: 'Log in first.', httpStatus: 401 },
  UND_BACKUP_DAMAGED: {
    message: 'The backup cannot be opened: the passphrase is wrong or the file is damaged.',
    hint: 'Check the passphrase; use another copy of the file.',
    httpStatus: 400,
  },
  UND_BACKUP_INVALID: {
    message: 'This is not a backup of an Understudy appliance: {reason}.',
    hint: "Choose a file that the appliance's configuration backup wrote.",
    httpStatus: 400,
  },
  UND_BACKUP_VERSION: {
    message: 'The backup was made by a newer version ({version}; this one knows {supported}).',
    hint: 'Upgrade this appliance, then restore.',
    httpStatus: 409,
  },
  UND_CAPTURE_BUSY: {
    message: 'Another process captures with the pins in {reason}.',
    hint: 'Stop the other agent; only one may run on a source server.',
    httpStatus: 409,
  },
  UND_CAPTURE_CALIBRATION: {
    message:
      'Capturing from disk {disk} does not work on this kernel: a test read was not found in memory ({reason}).',
    hint: 'Use scan mode for this source server and report its kernel version as a bug.',
    httpStatus: 409,
  },
  UND_CAPTURE_COMMAND: {
    message: 'The capture could not carry out {command}: {reason}.',
    hint: 'It is tried again by itself; if this repeats, restart the agent.',
    httpStatus: 500,
  },
  UND_CAPTURE_DISK_BIO_BASED: {
    message: 'Disk {disk} cannot be captured: {reason}.',
    hint: 'Protect the physical disks below it, or leave it out.',
    httpStatus: 409,
  },
  UND_CAPTURE_DISK_NOT_FOUND: {
    message: 'Disk {disk} cannot be captured: {reason}.',
    hint: 'Check that the disk is still there, then read the inventory again.',
    httpStatus: 404,
  },
  UND_CAPTURE_DISK_PARTITION: {
    message: '{disk} is a partition; capture works on whole disks.',
    hint: 'Protect the disk that the partition is on.',
    httpStatus: 409,
  },
  UND_CAPTURE_DISK_STACKED: {
    message: 'Disk {disk} cannot be captured: {reason}.',
    hint: 'Protect the physical disks that it is made of.',
    httpStatus: 409,
  },
  UND_CAPTURE_DISK_ZONED: {
    message: 'Disk {disk} is a zoned disk ({reason}), which cannot be captured.',
    hint: 'Leave this disk out.',
    httpStatus: 409,
  },
  UND_CAPTURE_HELPER_DIED: {
    message: "The capture's helper process ended: {reason}.",
    hint: 'The agent starts it again by itself; nothing is lost, the capture goes on in the kernel.',
    httpStatus: 500,
  },
  UND_CAPTURE_HELPER_MISSING: {
    message: "The capture's helper program was not found (looked at {reason}).",
    hint: 'Install the agent again; in a checkout, run scripts/build-capture.',
    httpStatus: 500,
  },
  UND_CAPTURE_KERNEL_TOO_OLD: {
    message: 'Kernel {reason} is too old for ordered capture.',
    hint: 'Update the source server to kernel 5.10 or later, or use scan mode.',
    httpStatus: 409,
  },
  UND_CAPTURE_LOAD: {
    message: 'The kernel refused the capture programs: {reason}.',
    hint: 'Use scan mode for this source server and report its kernel version as a bug.',
    httpStatus: 409,
  },
  UND_CAPTURE_LOCKDOWN: {
    message: 'Kernel lockdown forbids ordered capture ({reason}).',
    hint: 'Boot the source server with lockdown at most in integrity mode, or use scan mode.',
    httpStatus: 409,
  },
  UND_CAPTURE_NO_BTF: {
    message: 'The kernel does not describe its types (BTF), which ordered capture needs: {reason}.',
    hint: "Boot a kernel built with CONFIG_DEBUG_INFO_BTF (all of Debian's are), or use scan mode.",
    httpStatus: 409,
  },
  UND_CAPTURE_NO_PERMISSION: {
    message: 'The agent is not allowed to load the capture programs: {reason}.',
    hint: 'Run the agent as root with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN.',
    httpStatus: 403,
  },
  UND_CAPTURE_PIN_DIR: {
    message: 'The capture cannot be pinned: {reason}.',
    hint: 'Check that the bpf file system can be mounted on /sys/fs/bpf.',
    httpStatus: 409,
  },
  UND_CONFIG_INVALID: {
    message: 'The configuration is not valid: {reason}.',
    hint: 'Correct {path} and start the service again.',
    httpStatus: 500,
  },
  UND_CONTROL_INVALID: {
    message: 'A control message of type {type} is not valid: {reason}.',
    hint: 'Check that agent and appliance are of matching versions, then update the older one.',
    httpStatus: 400,
  },
  UND_CONTROL_UNKNOWN: {
    message: 'The control message type {type} is not known to this version.',
    hint: 'Update the agent or the appliance, whichever is older.',
    httpStatus: 400,
  },
  UND_DISK_CHAIN: {
    message:
      'The image chain of disk {disk} of job {job} is not what it should be: expected {expected}, found {found}.',
    hint: 'Somebody else changed the images on the target host. Look at the chain there; nothing was written to it.',
    httpStatus: 500,
  },
  UND_DISK_RESIZE_NEEDED: {
    message:
      'Source disk {disk} of job {job} is now {newSizeBytes} bytes; its replica disk has {sizeBytes}.',
    hint: "Grow the replica disk to the source's size; the new range is mirrored after that.",
    httpStatus: 409,
  },
  UND_ENROL_CSR_INVALID: {
    message: 'The certificate request is not valid: {reason}.',
    hint: "Install the agent again from the appliance's page.",
    httpStatus: 400,
  },
  UND_ENROL_TOKEN_EXPIRED: {
    message: 'The enrolment token has expired.',
    hint: "Install the agent again from the appliance's page.",
    httpStatus: 403,
  },
  UND_ENROL_TOKEN_INVALID: {
    message: 'The enrolment token is not known.',
    hint: "Install the agent again from the appliance's page.",
    httpStatus: 403,
  },
  UND_ENROL_TOKEN_USED: {
    message: 'The enrolment token was used already.',
    hint: "If you did not install this agent twice, someone else may have used the token: revoke the source's certificate and install the agent again.",
    httpStatus: 403,
  },
  UND_FAILOVER_BOOT_FAILED: {
    message: 'Replica VM {vm} did not boot: {reason}.',
    hint: 'Look at the screenshot kept with the failover and at what guest preparation could not do. Replication goes on; the failover can be tried again.',
    httpStatus: 500,
  },
  UND_FAILOVER_CONFIRM: {
    message: "What was typed is not the replica's name.",
    hint: 'Type {name} to confirm.',
    httpStatus: 400,
  },
  UND_FAILOVER_DEVICE_MISSING: {
    message:
      'The disk with serial {serial} was attached to the appliance, but no device appeared within {limitMs} ms.',
    hint: 'Check that the appliance VM has a virtio-scsi controller and responds, then try again.',
    httpStatus: 500,
  },
  UND_FAILOVER_NOT_FOUND: {
    message: 'There is no failover {failover}.',
    hint: 'Look at the list of failovers.',
    httpStatus: 404,
  },
  UND_FAILOVER_NOT_READY: {
    message: 'Job {job} cannot fail over: {reason}.',
    hint: 'Wait until the job has a consistent recovery point.',
    httpStatus: 409,
  },
  UND_FAILOVER_NO_BOOT_PROOF: {
    message: 'Replica VM {vm} gave no proof of having booted within {limitMs} ms ({seen}).',
    hint: 'Look at the screenshot kept with the failover. Replication goes on; the failover can be tried again.',
    httpStatus: 504,
  },
  UND_FAILOVER_NO_SCREENSHOT: {
    message: 'Failover {failover} has no screenshot.',
    hint: 'A screenshot is taken when the replica VM has booted or has failed to.',
    httpStatus: 404,
  },
  UND_FAILOVER_RUNNING: {
    message: 'Job {job} is being failed over already.',
    hint: 'Wait until that failover has ended.',
    httpStatus: 409,
  },
  UND_FAILOVER_SOURCE_ALIVE: {
    message: '{source} still answers: {evidence}. Its replica was not powered on beside it.',
    hint: 'Power the source server off, or fail over as planned, which does that. If something else has its address now, or two servers can do no harm, confirm that the replica is to run all the same.',
    httpStatus: 409,
  },
  UND_FAILOVER_STATE: {
    message: 'Failover {failover} is {state}: it cannot be {act}.',
    hint: "Look at the failover's present state.",
    httpStatus: 409,
  },
  UND_FENCE_LIFTED: {
    message: 'The failover {failover} of {source} was taken back: its agent goes on.',
    hint: 'Nothing has to be done.',
    httpStatus: 409,
  },
  UND_FRAME_CHECKSUM: {
    message: 'Frame {seq} of stream epoch {epoch} is damaged: its {part} checksum does not match.',
    hint: 'The frame is sent again by itself. If this repeats, check the memory and network of both machines.',
    httpStatus: 400,
  },
  UND_FRAME_EPOCH: {
    message: 'A frame of stream epoch {epoch} arrived; job {job} is in epoch {expected}.',
    hint: 'The agent connects again and continues in the right epoch by itself.',
    httpStatus: 409,
  },
  UND_FRAME_GAP: {
    message: 'Frame {seq} arrived; job {job} expects frame {expected}.',
    hint: 'The agent sends the missing frames again by itself.',
    httpStatus: 409,
  },
  UND_FRAME_INVALID: {
    message: 'Frame {seq} is not valid: {reason}.',
    hint: 'The job is stopped so that nothing wrong reaches the replica disk. Update the agent, then start the job with a new difference mirror.',
    httpStatus: 400,
  },
  UND_FREEZE_FAILED: {
    message: 'Freezing {mountPoint} failed: {reason}. Nothing is left frozen.',
    hint: 'Check that the mount point is a local file system that is not frozen by someone else.',
    httpStatus: 409,
  },
  UND_GROUP_EMPTY: {
    message: 'Group {group} has no members.',
    hint: 'Put jobs into it first.',
    httpStatus: 409,
  },
  UND_GROUP_MARK_FAILED: {
    message: 'Group {group} has no mark: {member} could not be marked: {reason}',
    hint: 'Look at that job, then try again. What can be recovered otherwise is on the common timeline.',
    httpStatus: 409,
  },
  UND_GROUP_MEMBER: {
    message: 'Job {job} is in group {group} already.',
    hint: 'A job is in one group at most: take it out of the other one first.',
    httpStatus: 409,
  },
  UND_GROUP_MEMBER_LEFT: {
    message: 'The failover of {member} was taken back while group {group} was being failed over.',
    hint: 'Undo the failover of the whole group, or let it go on, which fails that member over again.',
    httpStatus: 409,
  },
  UND_GROUP_NAME: {
    message: 'There is a group {name} already.',
    hint: 'Choose another name.',
    httpStatus: 409,
  },
  UND_GROUP_NO_POINT: {
    message: 'Group {group} cannot be recovered to one moment: {reason}.',
    hint: 'Look at the common timeline of the group. A member can still be failed over on its own.',
    httpStatus: 409,
  },
  UND_GROUP_RUNNING: {
    message: 'Group {group} is being failed over, or waits for a decision about it.',
    hint: 'Commit or undo that failover first.',
    httpStatus: 409,
  },
  UND_GROUP_STATE: {
    message: 'The failover of group {group} is {state}: it cannot be {act}.',
    hint: "Look at the failover's present state.",
    httpStatus: 409,
  },
  UND_GUEST_DEVICE_NAME: {
    message: '{file} names the device {device}, which the replica does not have.',
    hint: 'Change it to a UUID or label in the source server, or by hand in the replica.',
    httpStatus: 409,
  },
  UND_GUEST_DRIVER_MISSING: {
    message: 'Kernel {kernel} of the guest has no {module} driver.',
    hint: 'Install a kernel with virtio drivers in the source server.',
    httpStatus: 409,
  },
  UND_GUEST_INITRAMFS: {
    message: 'The initramfs {file} cannot be extended: {reason}.',
    hint: 'Build it with the modules virtio_pci, virtio_scsi and sd_mod in the source server.',
    httpStatus: 409,
  },
  UND_GUEST_ISOLATION: {
    message: 'Guest preparation cannot be isolated from the appliance: {reason}.',
    hint: 'Run the appliance as root with the right to make mount namespaces.',
    httpStatus: 500,
  },
  UND_GUEST_NO_EFI_LOADER: {
    message:
      'The guest boots by UEFI, but its EFI system partition has no boot loader that can be used: {reason}.',
    hint: 'Install the boot loader also at the fallback path \\EFI\\BOOT\\BOOTX64.EFI.',
    httpStatus: 409,
  },
  UND_GUEST_NO_ROOT: {
    message: 'No root file system was found on the disks of the guest: {reason}.',
    hint: 'The guest boots as it is; protect all disks that its system is on.',
    httpStatus: 409,
  },
  UND_GUEST_PATH: {
    message: 'The path {path} of the guest cannot be used: {reason}.',
    hint: 'Repair the file system of the source server.',
    httpStatus: 409,
  },
  UND_GUEST_PREPARE_FAILED: {
    message: 'Guest preparation failed: {reason}.',
    hint: 'Check the service log. Replication goes on; the failover can be tried again.',
    httpStatus: 500,
  },
  UND_GUEST_STORAGE: {
    message: '{device} of the guest holds {type}, which guest preparation leaves alone.',
    hint: 'Make sure that the source server itself is set up to boot on virtio-scsi disks.',
    httpStatus: 409,
  },
  UND_HANDOVER_FAILED: {
    message: 'The source server {source} could not be handed over: {reason}.',
    hint: 'Remove the reason, then start the planned failover again. What was stopped on the source is started again.',
    httpStatus: 409,
  },
  UND_HANDOVER_UNKNOWN: {
    message:
      'The source server {source} has not been prepared for failover {failover}, or has gone on since.',
    hint: 'Start the planned failover again.',
    httpStatus: 409,
  },
  UND_HELLO_EXPECTED: {
    message: 'The connection did not begin with a hello.',
    hint: 'Check that the program that connects is an Understudy agent.',
    httpStatus: 400,
  },
  UND_HOST_NOT_CONFIGURED: {
    message: 'The appliance does not know its target host.',
    hint: 'Deploy the appliance with scripts/deploy, or name the host file in its configuration.',
    httpStatus: 503,
  },
  UND_HV_BAD_NAME: {
    message: '{what} is not a valid name: {name}.',
    hint: 'Use letters, digits, dot, underscore and hyphen, beginning with a letter or digit, at most 63 characters.',
    httpStatus: 400,
  },
  UND_HV_BAD_SERIAL: {
    message: 'The disk serial {serial} is not valid.',
    hint: 'Use 1 to 20 letters, digits, hyphens or underscores.',
    httpStatus: 400,
  },
  UND_HV_DETACH_TIMEOUT: {
    message:
      'Disk {serial} is still attached to VM {vm} after {timeoutMs} ms: its guest does not let go of it.',
    hint: 'Close what uses the disk in the guest, check that the guest responds, then try again. Start nothing on this disk meanwhile.',
    httpStatus: 504,
  },
  UND_HV_DISK_IN_USE: {
    message: 'Disk {disk} is in use by {users}.',
    hint: 'Detach or remove the users of the disk first.',
    httpStatus: 409,
  },
  UND_HV_DISK_LOCKED: {
    message: 'The image of disk {disk} is still open in another process of the target host.',
    hint: 'Find the VM or tool that has the image open on the target host and end it, then try again.',
    httpStatus: 409,
  },
  UND_HV_DISK_NOT_ATTACHED: {
    message: 'No disk with serial {serial} is attached to VM {vm}.',
    hint: 'Attach the disk first, or correct the serial.',
    httpStatus: 404,
  },
  UND_HV_DISK_NOT_FOUND: {
    message: 'There is no disk {disk} in storage pool {pool} of the target host.',
    hint: 'Check the storage pool; a replica disk that is gone must be created and mirrored anew.',
    httpStatus: 404,
  },
  UND_HV_FAILED: {
    message: 'The target host could not {action}: {reason}.',
    hint: 'Resolve what the target host reports, then try again.',
    httpStatus: 502,
  },
  UND_HV_GUEST_AGENT: {
    message: 'The guest agent of VM {vm} did not do it: {reason}.',
    hint: 'The source server needs qemu-guest-agent, running; where its configuration blocks guest-exec, allow it.',
    httpStatus: 502,
  },
  UND_HV_NAME_IN_USE: {
    message: 'The name {name} is in use on the target host already.',
    hint: 'Choose another name, or remove what has this name.',
    httpStatus: 409,
  },
  UND_HV_NETWORK_NOT_FOUND: {
    message: 'There is no usable network {network} on the target host.',
    hint: 'Choose one of the networks that the target host lists, or start the network there.',
    httpStatus: 404,
  },
  UND_HV_NO_BASE: {
    message: 'Disk {disk} is not an overlay on another disk.',
    hint: 'Choose an overlay.',
    httpStatus: 409,
  },
  UND_HV_NO_CONTROLLER: {
    message:
      'VM {vm} has no virtio-scsi controller to attach disks to, and takes none while it runs: {reason}.',
    hint: 'Shut the VM down (a restart from inside is not enough), look with virsh dumpxml that its definition has <controller type="scsi" model="virtio-scsi"/> (it was put there if libvirt allowed it), and start the VM again.',
    httpStatus: 409,
  },
  UND_HV_NO_MEMORY: {
    message: 'The target host has not enough memory to start VM {vm}: {reason}.',
    hint: 'Free memory on the target host, or give the VM less.',
    httpStatus: 507,
  },
  UND_HV_OWN_DISK: {
    message: 'Disk {disk} belongs to the appliance itself.',
    hint: 'Choose a replica disk.',
    httpStatus: 409,
  },
  UND_HV_POOL_FULL: {
    message: 'Storage pool {pool} has {availableBytes} bytes free; {neededBytes} are needed.',
    hint: 'Free space in the storage pool, or choose another one.',
    httpStatus: 507,
  },
  UND_HV_POOL_UNUSABLE: {
    message: 'Storage pool {pool} cannot hold replica disks: {reason}.',
    hint: 'Choose a storage pool of type dir, fs or netfs.',
    httpStatus: 409,
  },
  UND_HV_REFUSED: {
    message: 'The target host does not allow the appliance to {action}: {reason}.',
    hint: "If this should be allowed, extend the appliance's configuration on the target host (/etc/understudy).",
    httpStatus: 403,
  },
  UND_HV_SHRINK: {
    message: 'Disk {disk} has {sizeBytes} bytes and cannot be made smaller ({newSizeBytes} bytes).',
    hint: 'Choose a size that is not below the present one.',
    httpStatus: 409,
  },
  UND_HV_STOP_TIMEOUT: {
    message: 'VM {vm} did not power off within {timeoutMs} ms.',
    hint: 'Look at its console; power it off by force if it hangs.',
    httpStatus: 504,
  },
  UND_HV_UNREACHABLE: {
    message: 'The target host {host} does not answer: {reason}.',
    hint: "Check the network between appliance and target host, and that the appliance's key is installed there.",
    httpStatus: 503,
  },
  UND_HV_UNSUPPORTED: {
    message: 'The target host does not support {what}: {reason}.',
    hint: 'Install what is missing on the target host, or choose another setting.',
    httpStatus: 409,
  },
  UND_HV_VM_NOT_FOUND: {
    message: 'There is no VM {vm} on the target host.',
    hint: 'Check the name; the VM may have been removed on the target host.',
    httpStatus: 404,
  },
  UND_HV_VM_NOT_RUNNING: {
    message: 'VM {vm} is not running.',
    hint: 'Power the VM on first.',
    httpStatus: 409,
  },
  UND_HV_VM_RUNNING: {
    message: 'VM {vm} is running.',
    hint: 'Power the VM off first.',
    httpStatus: 409,
  },
  UND_INTERNAL: {
    message: 'Internal error: {reason}.',
    hint: 'Collect the service log and report this as a bug.',
    httpStatus: 500,
  },
  UND_INVENTORY_FAILED: {
    message: 'The inventory of {source} could not be taken: {reason}.',
    hint: 'Install what is missing on the source server (util-linux has lsblk and findmnt), then ask for the inventory again.',
    httpStatus: 500,
  },
  UND_ISOLATION_FAILED: {
    message: '{source} could not be cut off from the network, or not be brought back: {reason}.',
    hint: 'Cutting off needs nftables on the source server. `nft delete table inet understudy_isolation` and the same with `arp` bring its network back by hand.',
    httpStatus: 500,
  },
  UND_JOB_DISK_UNPROTECTABLE: {
    message: 'Disk {disk} of source {source} cannot be protected: {reason}.',
    hint: 'Choose other disks.',
    httpStatus: 409,
  },
  UND_JOB_SOURCE_PROTECTED: {
    message: 'Source {source} is protected by job {job} already.',
    hint: 'Delete that job first.',
    httpStatus: 409,
  },
  UND_JOB_STATE: {
    message: 'Job {job} is {state}: it cannot be {act}.',
    hint: "Wait until the job's state allows it.",
    httpStatus: 409,
  },
  UND_JOB_DISK_USED: {
    message:
      'VM {vm} runs on replica disk {disk} of job {job}: the job has stopped, nothing is applied under it.',
    hint: 'Power that VM off and take the disk from it, then resume the job: the disks are compared with the source. To run a replica, fail over.',
    httpStatus: 409,
  },
  UND_JOB_TAINTED: {
    message:
      'There is a replica VM {vm} on the target host; nothing is applied to the disks of job {job} under it.',
    hint: 'Commit or undo its failover. If this appliance was restored from a backup of before the failover, decide which of the two is to live: remove the VM to go on replicating, or delete the job and keep its disks.',
    httpStatus: 409,
  },
  UND_HISTORY_GONE: {
    message: 'Frame {seq} of job {job} has left the journal.',
    hint: 'Choose a newer recovery point; keep more history in the settings of the job.',
    httpStatus: 410,
  },
  UND_JOURNAL_CORRUPT: {
    message: 'The journal of job {job} is damaged in {segment} at byte {offsetBytes}: {reason}.',
    hint: 'Start the job with a new difference mirror; check the journal disk.',
    httpStatus: 500,
  },
  UND_JOURNAL_FULL: {
    message:
      'The journal of job {job} holds {usedBytes} bytes that are not applied; its limit is {limitBytes}.',
    hint: 'Resolve what keeps the job from applying, or give its journal more room.',
    httpStatus: 507,
  },
  UND_JOURNAL_IO: {
    message: 'The journal of job {job} cannot be written: {reason}.',
    hint: 'Check the journal disk and its free space; the job resumes by itself once it can be written.',
    httpStatus: 500,
  },
  UND_LABELS_FULL: {
    message: 'The job has {limit} labels; it can have no more.',
    hint: 'Remove labels that are no longer of use.',
    httpStatus: 409,
  },
  UND_LINK_CLOSED: {
    message: 'The connection was closed: {reason}.',
    hint: 'The agent connects again by itself. If it does not, check the network between source server and appliance.',
    httpStatus: 503,
  },
  UND_LINK_MESSAGE_INVALID: {
    message: 'The connection carried something that is not a message: {reason}.',
    hint: 'Check that both sides are Understudy of matching versions and that nothing alters the traffic.',
    httpStatus: 400,
  },
  UND_LINK_TIMEOUT: {
    message: 'The other side did not answer for {timeoutMs} ms.',
    hint: 'Check the network between source server and appliance; the agent connects again by itself.',
    httpStatus: 504,
  },
  UND_MOUNT_BUSY: {
    message: 'Something still has a disk of the recovery point open: {users}.',
    hint: 'It is tried again by itself. If it lasts, restart the appliance.',
    httpStatus: 409,
  },
  UND_MOUNT_FAILED: {
    message: 'The recovery point could not be opened: {reason}.',
    hint: 'Try another point, or a test failover. Replication goes on.',
    httpStatus: 500,
  },
  UND_MOUNT_NOT_OPEN: {
    message: 'The recovery point {mount} is not open for this: {reason}.',
    hint: 'Open it again.',
    httpStatus: 409,
  },
  UND_MOUNT_OPEN: {
    message: 'A recovery point of job {job} is open.',
    hint: 'Close it first, or use the one that is open.',
    httpStatus: 409,
  },
  UND_MOUNT_PATH: {
    message: '{path} on {volume} cannot be read: {reason}.',
    hint: 'Choose another file or folder.',
    httpStatus: 409,
  },
  UND_NETWORK_INACTIVE: {
    message: 'Network {network} of the target host is not active.',
    hint: 'Start the network on the target host, or choose another one.',
    httpStatus: 409,
  },
  UND_NOT_FOUND: {
    message: 'There is no {kind} {id}.',
    hint: 'It may have been removed; load the list again.',
    httpStatus: 404,
  },
  UND_PAGE_ANSWER_INVALID: {
    message:
      'The appliance answered {path} with status {status} and nothing that the page understands.',
    hint: "Reload the page. If this repeats, look at the appliance's service log.",
    httpStatus: 502,
  },
  UND_PAGE_OFFLINE: {
    message: 'The appliance does not answer: {reason}.',
    hint: 'Check that the appliance runs and that this computer reaches it, then try again.',
    httpStatus: 503,
  },
  UND_POINT_FAILED: {
    message: 'No recovery point of job {job} was taken: {reason}.',
    hint: 'The source server goes on undisturbed. Remove the reason and take the point again.',
    httpStatus: 409,
  },
  UND_POINT_GONE: {
    message: 'No state of job {job} at or before {at} can be recovered: {reason}.',
    hint: 'Choose a later moment; the recovery points of the job show what there is.',
    httpStatus: 409,
  },
  UND_POINTS_REBUILDING: {
    message:
      'Which moments of job {job} can be recovered is being read from its journal: {percent} % are done.',
    hint: 'Wait until the recovery points of the job are complete, or recover the newest point, which does not depend on it.',
    httpStatus: 409,
  },
  UND_POOL_LOW: {
    message:
      'Storage pool {pool} is nearly full: {availableBytes} bytes free, {neededBytes} are kept free. Applying to job {job} is held.',
    hint: 'Free space in the storage pool; the job goes on by itself. Nothing is lost: the journal keeps what is not applied.',
    httpStatus: 507,
  },
  UND_PREFLIGHT_FAILED: {
    message: 'The agent was not installed on {source}: {reason}.',
    hint: 'Resolve what the preflight names, then try again. Nothing was changed on the source server.',
    httpStatus: 409,
  },
  UND_PROTOCOL_VERSION: {
    message: 'The other side speaks protocol version {version}; this side speaks {supported}.',
    hint: 'Update the agent or the appliance, whichever is older.',
    httpStatus: 409,
  },
  UND_PUSH_AGENT_SILENT: {
    message:
      'The agent was installed on {source} but did not enrol within {timeoutMs} ms: {reason}.',
    hint: 'Check that the source server reaches the appliance on its ports; what was installed has been removed again.',
    httpStatus: 504,
  },
  UND_PUSH_CANCELLED: {
    message: 'The installation on {source} was cancelled.',
    hint: 'What was installed so far has been removed again.',
    httpStatus: 409,
  },
  UND_PUSH_FAILED: {
    message: 'Installing the agent on {source} failed at {step}: {reason}.',
    hint: 'Resolve the reason, then install again. What was installed so far has been removed again.',
    httpStatus: 502,
  },
  UND_REPLAY_FAILED: {
    message: 'Replaying the journal of job {job} onto disk {disk} failed: {reason}.',
    hint: 'Check the storage pool on the target host, then try the recovery again. The replica disks were not touched.',
    httpStatus: 500,
  },
  UND_REPLICA_DISK_ABSENT: {
    message:
      'Replica disk {serial} of job {job} was attached but did not appear in the appliance within {timeoutMs} ms.',
    hint: "Check the appliance's kernel log; the attach is tried again by itself.",
    httpStatus: 504,
  },
  UND_REPLICA_DISK_SMALL: {
    message:
      'Replica disk {path} was grown to {neededBytes} bytes but the appliance still sees {sizeBytes}.',
    hint: "Check the appliance's kernel log; the job goes on by itself once the size is seen.",
    httpStatus: 504,
  },
  UND_REQUEST_INVALID: {
    message: 'The request is not valid: {reason}.',
    hint: 'Correct {field}.',
    httpStatus: 400,
  },
  UND_SOURCE_ARCHITECTURE: {
    message:
      'Source server {source} has the architecture {architecture}; the agent is made for x86_64.',
    hint: 'Choose a source server with a 64-bit Intel or AMD processor.',
    httpStatus: 409,
  },
  UND_SOURCE_BUSY: {
    message: 'Source {source} is {state} now.',
    hint: 'Wait until that has ended.',
    httpStatus: 409,
  },
  UND_SOURCE_CLOCK_SKEW: {
    message: "The clock of source server {source} is {skewSeconds} s {direction} the appliance's.",
    hint: 'Set up time synchronisation (chrony or systemd-timesyncd) on both; certificates are refused when clocks differ by hours.',
    httpStatus: 409,
  },
  UND_SOURCE_DIFFERENT_APPLIANCE: {
    message: 'Source server {source} has the agent of another appliance ({appliance}).',
    hint: "Uninstall the agent there first: one appliance owns a source's stream.",
    httpStatus: 409,
  },
  UND_SOURCE_DISK_MISSING: {
    message: 'Disk {disk} of source {source} is not there any more; job {job} protects it.',
    hint: 'Put the disk back; or delete the job and protect the source again without it.',
    httpStatus: 409,
  },
  UND_SOURCE_EXISTS: {
    message: 'A source with the address {address} is in the list already.',
    hint: 'Use that one; uninstall it first to install anew.',
    httpStatus: 409,
  },
  UND_SOURCE_GLIBC_TOO_OLD: {
    message: 'Source server {source} has {found}; the agent needs glibc {needed} or newer.',
    hint: 'Choose a source server with Debian 11, RHEL 8 or newer.',
    httpStatus: 409,
  },
  UND_SOURCE_HAS_JOB: {
    message: 'Source {source} is protected by job {job}.',
    hint: 'Delete the job first.',
    httpStatus: 409,
  },
  UND_SOURCE_IS_APPLIANCE: {
    message: 'Machine {source} is an Understudy appliance.',
    hint: 'Choose the server that is to be protected.',
    httpStatus: 409,
  },
  UND_SOURCE_KERNEL_TOO_OLD: {
    message:
      'Source server {source} runs kernel {kernel}; capturing writes needs {needed} or newer.',
    hint: 'Upgrade the kernel of the source server.',
    httpStatus: 409,
  },
  UND_SOURCE_LOCKDOWN: {
    message:
      'The kernel of source server {source} is locked down ({mode}) and does not let BPF read its memory.',
    hint: 'Boot the source server without kernel lockdown (for example with Secure Boot off), or in integrity mode.',
    httpStatus: 409,
  },
  UND_SOURCE_LOW_MEMORY: {
    message:
      'Source server {source} has {availableMiB} MiB of memory available; the agent wants {neededMiB} MiB.',
    hint: 'Free memory on the source server.',
    httpStatus: 409,
  },
  UND_SOURCE_NOT_LINUX: {
    message: 'Machine {source} does not run Linux but {system}.',
    hint: 'Choose a Linux server.',
    httpStatus: 409,
  },
  UND_SOURCE_NO_BPF_FS: {
    message: 'Source server {source} has no BPF file system at /sys/fs/bpf.',
    hint: 'Mount it: mount -t bpf bpf /sys/fs/bpf. systemd does so by itself where the kernel supports it.',
    httpStatus: 409,
  },
  UND_SOURCE_NO_BTF: {
    message:
      'The kernel {kernel} of source server {source} has no type information (/sys/kernel/btf/vmlinux is missing).',
    hint: 'Run a kernel built with CONFIG_DEBUG_INFO_BTF, as those of Debian 11, Ubuntu 20.10, RHEL 8.2 and newer.',
    httpStatus: 409,
  },
  UND_SOURCE_NO_DISK: {
    message: 'Source server {source} has no disk that can be protected: {reason}.',
    hint: 'Choose a server with at least one plain disk.',
    httpStatus: 409,
  },
  UND_SOURCE_NO_SPACE: {
    message:
      'Source server {source} has {availableMiB} MiB free in {folder}; {neededMiB} MiB are needed.',
    hint: 'Free space on the source server.',
    httpStatus: 507,
  },
  UND_SOURCE_NO_SYSTEMD: {
    message: 'Source server {source} is not run by systemd (its first process is {init}).',
    hint: 'Choose a server that is run by systemd.',
    httpStatus: 409,
  },
  UND_SOURCE_PORT_BLOCKED: {
    message: 'Source server {source} cannot reach the appliance at {appliance}: {reason}.',
    hint: 'Open the way from the source server to these ports of the appliance in the firewalls between them.',
    httpStatus: 409,
  },
  UND_SOURCE_FILES_FAILED: {
    message: 'The files of the source server cannot be mapped: {reason}.',
    hint: 'Nothing is left out for it: the mirror copies those files like any others.',
    httpStatus: 500,
  },
  UND_SOURCE_READ_FAILED: {
    message: 'Reading disk {disk} of the source server at byte {offsetBytes} failed: {reason}.',
    hint: 'Check the disk of the source server; the mirror is tried again.',
    httpStatus: 500,
  },
  UND_SOURCE_READ_ONLY: {
    message: '{folder} of source server {source} is read-only.',
    hint: 'Make it writable for the installation, or choose another server.',
    httpStatus: 409,
  },
  UND_SOURCE_SAME_MACHINE: {
    message: 'Source server {source} has the same machine UUID as source {other}.',
    hint: 'Give the clone its own UUID, or choose the original.',
    httpStatus: 409,
  },
  UND_SOURCE_TOOL_MISSING: {
    message: 'Source server {source} has no {tool}.',
    hint: 'Install {tool} on the source server.',
    httpStatus: 409,
  },
  UND_SSH_AUTH: {
    message: '{username} could not log in to {source}: {reason}.',
    hint: 'Check the user name and the password or key. The server may allow only some of the ways to log in.',
    httpStatus: 401,
  },
  UND_SSH_FAILED: {
    message: 'A command on {source} failed: {reason}.',
    hint: 'Resolve what the source server reports, then try again.',
    httpStatus: 502,
  },
  UND_SSH_HOST_KEY_CHANGED: {
    message: '{source} shows another SSH host key ({fingerprint}) than the known one ({known}).',
    hint: 'If the server was installed anew, compare the fingerprint on its console and confirm it; else someone may be listening in: do not go on.',
    httpStatus: 409,
  },
  UND_SSH_HOST_KEY_UNKNOWN: {
    message: '{source} is not known yet; its SSH host key is {fingerprint}.',
    hint: "Compare the fingerprint with the one on the server's console (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub) and confirm it.",
    httpStatus: 409,
  },
  UND_SSH_KEY_INVALID: {
    message: 'The private key for {source} cannot be used: {reason}.',
    hint: 'Paste the whole private key in OpenSSH or PEM form, with its passphrase if it has one.',
    httpStatus: 400,
  },
  UND_SSH_UNREACHABLE: {
    message: '{source} does not answer to SSH: {reason}.',
    hint: 'Check the address and port, that the server runs and that no firewall is in the way.',
    httpStatus: 503,
  },
  UND_SUDO_REFUSED: {
    message: '{username} may not become root on {source}: {reason}.',
    hint: 'Allow {username} to use sudo there, or give the password that sudo asks for, or log in as root.',
    httpStatus: 403,
  },
  UND_TEST_CHECKS_FAILED: {
    message: 'The replica of {job} booted, but not all checks passed: {failed}.',
    hint: "Look at the checks in the test's report, with what the script printed.",
    httpStatus: 500,
  },
  UND_TEST_NO_NETWORK: {
    message: 'Job {job} cannot be tested: the target host has no active isolated network.',
    hint: 'Define a libvirt network without a <forward> element on the target host, start it, and allow it for the appliance. A test must not meet the source server.',
    httpStatus: 409,
  },
  UND_TEST_RUNNING: {
    message: 'A test failover of job {job} is under way.',
    hint: 'Wait until it has ended, or end it.',
    httpStatus: 409,
  },
  UND_UNINSTALL_INCOMPLETE: {
    message: 'Something of the agent is left on {source}: {left}.',
    hint: 'Remove it by hand, or try again.',
    httpStatus: 500,
  },
  UND_USER_EXISTS: {
    message: 'There is a user {username} already.',
    hint: 'Choose another name.',
    httpStatus: 409,
  },
  UND_USER_LAST_ADMIN: {
    message: 'User {username} is the last one with the role admin.',
    hint: 'Give another user the role admin first.',
    httpStatus: 409,
  },
  UND_USER_NOT_FOUND: {
    message: 'There is no user {username}.',
    hint: 'Load the list of users again.',
    httpStatus: 404,
  },
} as const;

export type ErrorCode = keyof typeof ERRORS;

export type ErrorParams = Readonly<Record<string, string | number | bigint | boolean | undefined>>;

/** The form in which an error crosses the API, the agent's connection or a state file. */
export interface SerialisedError {
  code: ErrorCode;
  message: string;
  hint: string;
  params: Record<string, string>;
}

const fill = (template: string, params: ErrorParams): string =>
  template.replace(/\{(\w+)\}/g, (_, name: string) => String(params[name] ?? 'unknown'));

/** An error of the registry: `message` is filled in, `hint` says what to do, `params` names the things concerned. */
export class UndError extends Error {
  readonly code: ErrorCode;
  readonly params: ErrorParams;
  readonly hint: string;
  readonly httpStatus: number;

  constructor(code: ErrorCode, params: ErrorParams = {}, options?: { cause?: unknown }) {
    super(fill(ERRORS[code].message, params), options);
    this.name = 'UndError';
    this.code = code;
    this.params = params;
    this.hint = fill(ERRORS[code].hint, params);
    this.httpStatus = ERRORS[code].httpStatus;
  }

  toJSON(): SerialisedError {
    const params: Record<string, string> = {};
    for (const [name, value] of Object.entries(this.params)) {
      if (value !== undefined) params[name] = String(value);
    }
    return { code: this.code, message: this.message, hint: this.hint, params };
  }
}

/** Make an error of the registry; `params` fill the braces of its message. */
export function undError(
  code: ErrorCode,
  params: ErrorParams = {},
  options?: { cause?: unknown },
): UndError {
  return new UndError(code, params, options);
}

/** Whatever was thrown, as a coded error; what carries no code becomes UND_INTERNAL with the original as its cause. */
export function asUndError(error: unknown): UndError {
  if (error instanceof UndError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new UndError('UND_INTERNAL', { reason }, { cause: error });
}
