#!/bin/bash
# The guest's side of the proof: tells what `early` brought and what lies on the disks, then does what the host writes to
# the third disk. Its answers go to the second serial port.
say() { echo "PROOF: $*" >/dev/ttyS1; }
helper=/usr/lib/understudy/understudy-capture
pins=/sys/fs/bpf/understudy
run=/run/understudy-agent

work() {
  RANDOM=$1
  mkdir -p /var/tmp/work /srv/data/work
  for _ in $(seq 1 40); do
    file=$([ $((RANDOM % 2)) = 0 ] && echo /var/tmp/work || echo /srv/data/work)/$((RANDOM % 15))
    case $((RANDOM % 5)) in
      0) rm -f "$file" ;;
      1) head -c $((RANDOM * 4)) /dev/urandom >>"$file" ;;
      2) head -c $((RANDOM * 20)) /dev/urandom >"$file" && sync "$file" ;;
      *) head -c $((RANDOM * 10)) /dev/urandom >"$file" ;;
    esac
  done
}

say "carried $(cat $run/carried.json 2>/dev/null || echo '{"reason":"none"}')"
say "early $(systemctl show understudy-early -p ExecMainStartTimestampMonotonic -p ExecMainExitTimestampMonotonic --value | tr '\n' ' ')"
say "lsblk $(lsblk -J -b -o "$(cat /usr/lib/understudy/columns)" | tr -d '\n')"
for dm in /sys/block/dm-*; do
  [ -e "$dm" ] && say "dm $(cat "$dm/dev") $(dmsetup table --noflush "$(cat "$dm/dm/name")")"
done
for part in /sys/block/vd*/vd*; do [ -e "$part" ] && say "part $(cat "$part/dev") $(cat "$part/start")"; done
say ready
last=0
while :; do
  dd if=/dev/vdc iflag=direct bs=64k count=1 2>/dev/null | tr -d '\0' >/run/asked
  read -r id command rest </run/asked
  if [ -n "$id" ] && [ "$id" != "$last" ]; then
    last=$id
    case $command in
      witnesses) mkdir -p $run && tail -n +2 /run/asked >$run/witnesses ;;
      attach)
        # Its end of input comes at once: what is pinned goes on by itself.
        [ -e $pins ] || $helper run --pin $pins --ring 1048576 --timeout-ms 3600000 --disk 0:/dev/vda --disk 1:/dev/vdb \
          </dev/null 3>/run/attached >/dev/null
        [ -e $pins ] || say "failed $(cat /run/attached)"
        ;;
      work) work "$rest" ;;
      poweroff) systemctl poweroff ;;
    esac
    say "done $id"
  fi
  sleep 0.1
done
