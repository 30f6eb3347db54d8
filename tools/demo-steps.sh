#!/usr/bin/env bash
# The steps of the demo: demo-steps.sh ROOT LEAF. ROOT is only read; LEAF is formatted. Needs root, ublk and coppice on
# the PATH. Everything it makes is gone afterwards, whatever happens.
set -euo pipefail
root=$1 leaf=$2
run=$(mktemp -d /run/coppice-demo.XXXXXX)
mnt=$run/mnt
mkdir "$mnt"
export COPPICE_RUN_DIR=$run/daemon
daemon=

say() { printf '\n== %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
now() { date +%s%N; }
ms() { echo "$((($(now) - $1) / 1000000)) ms"; }

cleanup() {
  status=$?
  mountpoint -q "$mnt" && umount "$mnt"
  if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
    for name in web1 web2; do
      coppice inspect "$name" >/dev/null 2>&1 && coppice delete "$name"
    done
    kill "$daemon"
    wait "$daemon" || true
  fi
  [ $status = 0 ] || { echo "demo failed (exit $status); the daemon's log:"; cat "$run/log" 2>/dev/null; } >&2
  rm -rf "$run"
}
trap cleanup EXIT

start_daemon() {
  printf '$ coppice daemon &\n'
  coppice daemon >>"$run/log" 2>&1 &
  daemon=$!
  for _ in $(seq 300); do
    coppice list >/dev/null 2>&1 && return
    kill -0 "$daemon" 2>/dev/null || { echo "the daemon ended"; return 1; }
    sleep 0.1
  done
  echo "the daemon does not answer"; return 1
}

# Every file's digest, name and mode, so that "as it was left" means every byte.
fingerprint() { (cd "$1" && find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum; find . -xdev -printf '%p %m %U %G %l\n' | sort) | sha256sum | cut -c1-16; }
device_of() { coppice inspect "$1" -o json | sed -n 's/.*"\(path\|device\)": *"\(\/dev\/ublkb[0-9]*\)".*/\2/p' | head -1; }

say "Can this machine run it?"
show coppice doctor || { echo "it cannot, see above"; exit 1; }

say "A real Debian root, read-only, and an empty leaf"
size=$(blockdev --getsize64 "$root" 2>/dev/null || stat -c %s "$root")
echo "root: $root, $((size >> 20)) MiB"
t=$(now); before=$(sha256sum "$root" | cut -c1-16); echo "root digest $before (read in $(ms "$t"))"
if [ -b "$leaf" ]; then show coppice store format "$leaf"; else show coppice store format "$leaf" --size 4G; fi
start_daemon
t=$(now); show coppice create web1 --root "$root" --leaf "$leaf"; echo "first writable device after $(ms "$t")"
dev=$(device_of web1)
show coppice list

say "Used: mounted, changed, written"
show mount "$dev" "$mnt"
cat "$mnt/etc/os-release" | head -1
t=$(now)
echo "web1" >"$mnt/etc/hostname"
rm -rf "$mnt/usr/share/doc"
tar -C "$mnt/usr" -cf - bin | tar -C "$mnt/srv" -xf -
dd if=/dev/urandom of="$mnt/srv/data" bs=1M count=64 conv=fsync status=none
sync -f "$mnt"; echo "changed host name, removed /usr/share/doc, copied /usr/bin, wrote 64 MiB: $(ms "$t")"
frozen=$(fingerprint "$mnt"); echo "file system fingerprint $frozen"

say "Frozen while it is mounted, and written on"
show coppice freeze web1 --as v1
echo "written after the freeze" >"$mnt/srv/later"
rm "$mnt/srv/data"
left=$(fingerprint "$mnt"); echo "file system fingerprint $left"
show coppice list
show umount "$mnt"
show e2fsck -fn "$dev"

say "Taken away and made again: found as it was left"
show coppice delete web1
kill "$daemon"; wait "$daemon" || true
show coppice store check "$leaf"
start_daemon
t=$(now); show coppice create web1 --root "$root" --leaf "$leaf"; echo "device back after $(ms "$t")"
dev=$(device_of web1)
mount -o ro "$dev" "$mnt"
again=$(fingerprint "$mnt")
umount "$mnt"
[ "$again" = "$left" ] || { echo "fingerprint is $again, was $left"; exit 1; }
echo "file system fingerprint $again: every file as before"

say "A second device, from what was frozen"
t=$(now); show coppice create web2 --root "$root" --leaf "$leaf" --from v1; echo "second device after $(ms "$t")"
mount -o ro "$(device_of web2)" "$mnt"
again=$(fingerprint "$mnt")
umount "$mnt"
[ "$again" = "$frozen" ] || { echo "fingerprint is $again, was $frozen when it was frozen"; exit 1; }
echo "file system fingerprint $again: every file as it was frozen"
show coppice delete web2

say "What it cost"
show coppice inspect web1
show coppice delete web1
show coppice store info "$leaf"
after=$(sha256sum "$root" | cut -c1-16)
[ "$after" = "$before" ] || { echo "the root changed: $before, now $after"; exit 1; }
echo "root digest $after: untouched"
say "Done"
