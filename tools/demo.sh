#!/usr/bin/env bash
# The main job on a real Debian root: on this machine where its kernel has ublk, in a QEMU VM where not.
set -euo pipefail
cd "$(dirname "$0")/.."

modprobe -q ublk_drv 2>/dev/null || true
if [ ! -e /dev/ublk-control ]; then
  echo "demo: this kernel has no ublk, so all of it runs in a QEMU VM with Debian's 6.12 kernel"
  exec go run ./vmtests/cmd/vmrun -mem 3072 -image debian -scratch leaf=4G \
    -file /root/demo-steps.sh=tools/demo-steps.sh -- \
    bash /root/demo-steps.sh /dev/disk/by-id/virtio-debian /dev/disk/by-id/virtio-leaf
fi

echo "demo: this kernel has ublk, so all of it runs here, in a temporary directory"
root=$(go run ./vmtests/cmd/vmimage debian)
work=$(mktemp -d "${TMPDIR:-/tmp}/coppice-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
PATH="$PWD/bin:$PATH" bash tools/demo-steps.sh "$root" "$work/leaf.img"
