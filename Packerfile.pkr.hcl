// Turns the base image (scripts/build-images base: Debian with every package the appliance needs) into the appliance:
// boots it once and puts the product on it over SSH. `scripts/build-images appliance` calls this and prepares its
// inputs; nothing is downloaded here. For Packer 1.6 as Debian ships it, whose plugins are built in.

variable "base" {
  type        = string
  description = "The base image (qcow2)."
}
variable "bundle" {
  type        = string
  description = "The tar archive (zstd) that is unpacked at / of the appliance."
}
variable "ssh_key" {
  type        = string
  description = "The private key that opens the base image's root account."
}
variable "output" {
  type        = string
  description = "The folder for the result; must not exist."
}
variable "name" {
  type        = string
  description = "The file name of the result."
}
variable "accelerator" {
  type        = string
  default     = "tcg"
  description = "kvm only where a probe has shown that it works."
}
variable "cpus" {
  type    = number
  default = 2
}

source "qemu" "appliance" {
  accelerator      = var.accelerator
  machine_type     = "q35"
  cpus             = var.cpus
  memory           = 1024
  headless         = true
  disk_image       = true
  use_backing_file = true
  iso_url          = var.base
  iso_checksum     = "none"
  disk_size        = "4096M"
  format           = "qcow2"
  disk_interface   = "virtio"
  disk_cache       = "unsafe"
  disk_discard     = "unmap"
  disk_compression = false
  skip_compaction  = true
  net_device       = "virtio-net"
  output_directory = var.output
  vm_name          = var.name
  qemu_img_args {
    create = ["-F", "qcow2"]
  }
  // The mark that lets GRUB take the fast path for emulated processors; harmless on a real one for this one boot.
  qemuargs = [
    ["-cpu", "max"],
    ["-smbios", "type=11,value=understudy-emulated"],
  ]
  communicator              = "ssh"
  ssh_username              = "root"
  ssh_private_key_file      = var.ssh_key
  ssh_timeout               = "10m"
  ssh_clear_authorized_keys = false
  boot_wait                 = "1s"
  boot_command              = []
  shutdown_command          = "systemctl poweroff"
}

build {
  sources = ["source.qemu.appliance"]

  provisioner "file" {
    source      = var.bundle
    destination = "/tmp/appliance.tar.zst"
  }
  provisioner "shell" {
    script = "${path.root}/image/appliance/provision.sh"
  }
}
