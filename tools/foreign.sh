#!/usr/bin/env bash
# Gets the sources of e2fsprogs by apt, verified, from where this system has its packages from, and unpacks their tests: hundreds of file system images, most of them damaged on purpose.
# Debian 12 and 13. Usage: foreign.sh DIR
set -euo pipefail

dir=$1
if compgen -G "$dir/e2fsprogs-*/tests/f_*" >/dev/null; then
	exit 0
fi
mkdir -p "$dir/sources" "$dir/lists/partial"
cd "$dir"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
	case $file in
	*.sources) sed 's/^Types:.*/Types: deb-src/' "$file" ;;
	*.list) sed -n 's/^deb /deb-src /p' "$file" ;;
	esac >"sources/${file##*/}" 2>/dev/null || true
done
from() {
	apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$PWD/sources" -o Dir::State::lists="$PWD/lists" -o APT::Sandbox::User= "$@"
}
from update 2>/dev/null || true # an archive without sources is no reason to stop
from source --download-only e2fsprogs
tar -xf e2fsprogs_*.orig.tar.?z --wildcards '*/tests/*'
