//go:build vm && long

package vmtests

import "testing"

// Scripts of the life of a package that has been installed.
const (
	// measured has requests measured by the unit that is there for it, in its sandbox, and sees the numbers go on when the daemon is restarted and killed.
	measured = goOn + `
systemctl enable --now coppice-ebpf.service
systemctl show -p Result,ExecMainStatus coppice-ebpf.service
test "$(systemctl show -p Result --value coppice-ebpf.service)" = success
level=$(systemd-analyze security --no-pager coppice-ebpf.service | sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')
echo "exposure $level"; awk "BEGIN { exit !($level > 0 && $level <= 2.5) }"
counted=0; go_on
systemctl restart coppice.service; go_on
kill -9 $(systemctl show -p MainPID --value coppice.service); go_on
coppice latency data
`
	// goOn reads 16 blocks, and waits until at least as many more are counted: a daemon that has just been started may not have been given the maps yet.
	goOn = `
go_on() {
	dd if=/dev/coppice/by-name/data of=/dev/null bs=4k count=16 iflag=direct status=none
	for n in $(seq 60); do
		now=$(coppice latency data 2>/tmp/said | awk '$1 == "read" { n += $3 } END { print n + 0 }')
		if [ $now -ge $((counted + 16)) ]; then break; fi
		sleep 0.5
	done
	echo "$now reads are counted, $counted before"; cat /tmp/said
	test $now -ge $((counted + 16)); counted=$now
}
`
	// underLoad writes and verifies on the mounted device while the daemon is restarted, killed and upgraded.
	underLoad = `
fio --name=load --directory=/srv/data --size=24M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --rate_iops=400 --verify=crc32c \
 --time_based --runtime=14 --do_verify=1 --output=/root/fio.log >/root/fio.out 2>&1 &
load=$!
sleep 2; systemctl restart coppice.service
sleep 2; kill -9 $(systemctl show -p MainPID --value coppice.service)
sleep 2; apt-get install -y -q --no-install-recommends /debs/coppice_` + newPackage + `_amd64.deb
wait $load || { cat /root/fio.log /root/fio.out; exit 1; }
grep -q 'err= 0' /root/fio.log
coppice version | grep -c ` + newPackage + `
mountpoint /srv/data
test "$(systemctl show -p NRestarts --value coppice.service)" -ge 0
`
	// beforeReboot leaves a file on the declared device, and mounts another one by hand: no unit orders that mount after the daemon.
	beforeReboot = `
date >/srv/data/kept; sync -f /srv/data
coppice create hand --root /srv/root.img --leaf /dev/disk/by-id/virtio-leaf
udevadm settle; mount /dev/coppice/by-name/hand /mnt; echo hand >/mnt/file
`
	// afterReboot waits for the mount, which nofail keeps the boot from waiting for.
	afterReboot = goOn + `
for n in $(seq 90); do mountpoint -q /srv/data && break; sleep 1; done
systemctl is-active coppice.service srv-data.mount
mountpoint /srv/data; test -s /srv/data/kept
test "$(systemctl show -p After --value srv-data.mount | tr ' ' '\n' | grep -c '^coppice.service$')" = 1
coppice list
counted=0; go_on
test -z "$(systemctl --failed --no-legend)"
coppice create hand --root /srv/root.img --leaf /dev/disk/by-id/virtio-leaf
udevadm settle; e2fsck -fn /dev/coppice/by-name/hand; mount -o ro /dev/coppice/by-name/hand /mnt; cat /mnt/file; umount /mnt
coppice delete hand
`
	removePackage = `
apt-get remove -y -q coppice && exit 1
systemctl is-active coppice.service; mountpoint /srv/data
systemctl stop srv-data.mount
e2fsck -fn /dev/coppice/by-name/data
apt-get remove -y -q coppice
test -e /etc/coppice/coppice.toml
apt-get purge -y -q coppice
test -z "$(pgrep -x coppice)"
for left in /run/coppice /etc/coppice /var/lib/coppice /usr/share/doc/coppice /usr/lib/coppice /sys/fs/bpf/coppice \
 /etc/systemd/system/coppice.service.wants; do test ! -e $left; done
test ! -e /dev/ublkb0; test ! -e /dev/coppice/by-name/data
sed -i /coppice/d /etc/fstab; systemctl daemon-reload
test -z "$(systemctl --failed --no-legend)"
`
)

// TestPackageLife has requests measured in the kernel, restarts, kills and upgrades the daemon under load, reboots with mounts of fstab and of a person, and removes all of the package.
func TestPackageLife(t *testing.T) {
	t.Parallel()
	l := newPackageLab(t, oldPackage, newPackage)
	l.up(t)
	l.sh(t, "install", installPackage)
	l.sh(t, "declare", declareDevice)
	t.Log(l.sh(t, "measured", measured))
	l.sh(t, "restart, kill, upgrade", underLoad)
	t.Log(l.sh(t, "measured after the upgrade", goOn+"counted=0; go_on"))
	l.sh(t, "before reboot", beforeReboot)
	l.down(t)
	l.up(t)
	t.Log(l.sh(t, "after reboot", afterReboot))
	l.sh(t, "remove", removePackage)
	l.down(t)
}
