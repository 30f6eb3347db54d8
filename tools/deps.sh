#!/usr/bin/env bash
# Installs by apt what the Makefile's targets need and the packages that are given, and only what is missing.
# Debian 12 and 13; as root, or with a sudo that asks nothing.
set -euo pipefail

packages=(
	gcc libc6-dev                                       # the race detector
	qemu-system-x86 qemu-utils cpio kmod xz-utils       # the VM and its initramfs
	mmdebstrap e2fsprogs xfsprogs gdisk                 # real root images
	fio dmsetup                                         # load, and the peers of the benchmark
	nbdkit nbd-client                                   # remote block devices
	iproute2                                            # networks of nodes, in namespaces
	systemd git gzip man-db groff                       # units and pages of the package
	nginx-light docker-registry skopeo                  # servers of images, and who copies between them
	sqlite3 plocate                                     # who reads an index, and who is compared with it
	"$@"                                                # what one target alone needs
)

missing=()
for package in "${packages[@]}"; do
	state=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
	[[ $state == ii* ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
	exit 0
fi
echo "deps: installing ${missing[*]}"
if ! command -v apt-get >/dev/null; then
	echo "deps: this is no Debian: install the equivalents of: ${missing[*]}" >&2
	exit 1
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
	if ! sudo -n true 2>/dev/null; then
		echo "deps: root is needed to install: run 'make deps' as root once" >&2
		exit 1
	fi
	as_root=(sudo -n)
fi

apt() {
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}
install() {
	apt install -y --no-install-recommends "${missing[@]}" >/dev/null
}
# Package lists that are missing or too old show as an install that fails.
install 2>/dev/null || { apt update && install; }
