#!/bin/bash
# Pack the test guest's initramfs: init, busybox, kernel modules and static programs.
#
#   tests/guest/initramfs.sh OUT PROGRAM...
set -euo pipefail

[ $# -ge 1 ] || {
	echo 'usage: tests/guest/initramfs.sh OUT PROGRAM...' >&2
	exit 2
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$1
shift
kernel=$("$here/kernel.sh")
busybox=$(command -v busybox) || {
	echo 'tests/guest/initramfs.sh: busybox: not found: run tests/install.sh demo' >&2
	exit 1
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp"/{bin,modules,proc,sys,dev,tmp}
cp "$busybox" "$tmp/bin/busybox"
cp "$here/init" "$tmp/init"
# What an operator installs, as it is.
install -D -t "$tmp/scripts/init-premount" "$here/../../contrib/initramfs-tools/scripts/init-premount/fm-online"
find "$kernel/modules" -name '*.ko' -exec cp -t "$tmp/modules" '{}' +
for program; do
	# Symbols are ten times the code, and each byte is copied by the guest's kernel under TCG.
	strip -o "$tmp/bin/$(basename "$program")" "$program"
done
chmod -R go+rX "$tmp"
mkdir -p "$(dirname "$out")"
# Not compressed: unpacking would cost more than reading.
(cd "$tmp" && find . -mindepth 1 | sort | cpio -o -H newc -R 0:0 --quiet) > "$out.tmp"
mv "$out.tmp" "$out"
