#!/bin/bash
# PID 1 of a host. Arguments: name, address, the host's folder; KEEP: paths of the machine that stay
# visible. Everything else that programs share by accident is the host's own: /tmp, the home folder,
# /dev/shm, /run, /etc/hosts. The home folder survives a power-off, as a disk does.
set -euo pipefail
name=$1 address=$2 folder=$3

cover() { # cover DIR SOURCE: SOURCE appears at DIR, and what is to be kept below DIR stays
  local path
  for path in $KEEP; do
    if [[ $path == "$1"/* ]]; then
      mkdir -p "$2${path#"$1"}"
      mount --bind "$path" "$2${path#"$1"}"
    fi
  done
  mount --rbind "$2" "$1"
}

mount --make-rprivate /
mkdir -p "$folder/tmp"
mount -t tmpfs -o mode=1777,size=1g tmpfs "$folder/tmp"
cover "$HOME" "$folder/home"
cover /tmp "$folder/tmp"
mount -t tmpfs -o mode=755,size=16m tmpfs /run
mount -t tmpfs -o mode=1777,size=256m tmpfs /dev/shm
mkdir -p /run/sshd
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" >"$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
: >"$folder/resolv.conf" # no name server: a look-up fails at once instead of after ten seconds
mount --bind "$folder/resolv.conf" "$(realpath /etc/resolv.conf)"
hostname "$name"
ip link set lo up
cd "$HOME"
echo ready >"$folder/ready"
until [[ $(ip -brief address show eth0 2>&1) == *"$address"* ]]; do sleep 0.02; done
if [[ -f $folder/sshd_config ]]; then
  /usr/sbin/sshd -D -e -f "$folder/sshd_config" 2>>"$folder/sshd.log" &
fi
# Bash stays PID 1 and reaps; the host ends when this is killed from outside.
while :; do
  sleep 3600 &
  wait $! || true
done
