#!/usr/bin/env bash
# Makes build/deb/coppice_VERSION_ARCH.deb for each ARCH given: amd64, arm64.
#
# Two runs on one commit make the same bytes, wherever the repository lies: names of files, their modes and times, and what is
# linked into the program come from the commit alone. DEB_VERSION and SOURCE_DATE_EPOCH can be given, for trees that are no clone;
# OUT is the directory of the packages (default: build/deb).
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

nfpm=${NFPM:-build/tools/nfpm}
go=${GO:-go}
out=$(realpath -m "${OUT:-build/deb}")

# Version 1.2.3 at the tag v1.2.3, 1.2.3+git20261122.021131.abcdef0 after it, 0.1.0~git20261122.021131.abcdef0 before the first one: dpkg
# sorts them as they were made. The time is the commit's, in UTC.
version() {
	local tag stamp
	tag=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null) || tag=
	stamp=git$(TZ=UTC git log -1 --date=format-local:%Y%m%d.%H%M%S --format=%cd.%h --abbrev=7)
	if [[ -z $tag ]]; then
		echo "0.1.0~$stamp"
	elif [[ $(git rev-list -1 "$tag") == $(git rev-parse HEAD) ]]; then
		echo "${tag#v}"
	else
		echo "${tag#v}+$stamp"
	fi
}

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export VERSION=${DEB_VERSION:-$(version)}

# tree DIR TARGET copies the files below DIR, with modes of their own making: what is executable stays so.
tree() {
	local file mode
	[[ -d $1 ]] || return 0
	while IFS= read -r file; do
		mode=644
		[[ ! -x $1/$file ]] || mode=755
		install -D -m "$mode" "$1/$file" "$2/$file"
	done < <(cd "$1" && find . -type f ! -name '*.go' ! -name '.*' | sort)
}

# manual PAGE TARGET copies a page of the manual, with the default configuration in it.
manual() {
	mkdir -p "$(dirname "$2")"
	sed -e 's/\\/\\e/g; s/^\./\\\&./; s/-/\\-/g' systemd/coppice.toml | sed -e '/@CONFIGURATION@/{r /dev/stdin' -e 'd}' "$1" >"$2"
}

stage() {
	local root=$1 arch=$2
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOAMD64=v1 GOARM64=v8.0 GOFLAGS=-buildvcs=false \
		"$go" build -trimpath -ldflags "-s -w -buildid= -X main.version=$VERSION" -o "$root/usr/bin/coppice" ./cmd/coppice
	install -D -m 644 systemd/coppice.toml "$root/etc/coppice/coppice.toml"
	tree systemd/initramfs-tools "$root/usr/share/initramfs-tools"
	tree systemd/dracut "$root/usr/lib/dracut/modules.d/90coppice"
	tree systemd/root "$root"
	"$out/coppice-here" manual "$root"
	manual systemd/man/coppice.toml.5 "$root/usr/share/man/man5/coppice.toml.5"
	find "$root/usr/share/man" -type f -exec gzip -9n {} +
	install -D -m 644 LICENSE "$root/usr/share/doc/coppice/copyright"
	install -m 644 docs/boot.md docs/cli.md docs/runbook.md "$root/usr/share/doc/coppice/"
	gzip -9n <CHANGELOG.md >"$root/usr/share/doc/coppice/changelog.gz"
	"$go" -C tools run ./sbom "$root/usr/bin/coppice" "$VERSION" >"$root/usr/share/doc/coppice/sbom.cdx.json"
	chmod 644 "$root"/usr/share/doc/coppice/*
	find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

mkdir -p "$out"
trap 'rm -f "$out/coppice-here"' EXIT
CGO_ENABLED=0 GOFLAGS=-buildvcs=false "$go" build -trimpath -ldflags '-s -w' -o "$out/coppice-here" ./cmd/coppice # writes the manual
for arch in "$@"; do
	export ARCH=$arch STAGE=$out/stage-$arch
	rm -rf "$STAGE"
	mkdir -p "$STAGE/usr/bin"
	stage "$STAGE" "$arch"
	deb=$out/coppice_${VERSION}_$arch.deb
	said=$("$nfpm" package --config systemd/nfpm.yaml --packager deb --target "$deb.new") || { echo "$said" >&2; exit 1; }
	mv "$deb.new" "$deb"
	rm -rf "$STAGE"
	echo "${deb#"$PWD/"}"
done
