#!/bin/bash
# The distribution's kernel for guests, out of its package and without installing it.
#
#   tests/guest/kernel.sh
#
# Prints a folder with `vmlinux` (uncompressed: under TCG the guest would spend 4 s of a 6 s boot on unpacking itself; QEMU
# starts it by its PVH entry; where the image is not compressed by xz, the image itself under that name) and `modules/*.ko`.
# The folder is kept below ${XDG_CACHE_HOME:-~/.cache}/fm-guest; when one is there, neither apt nor network is needed.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/fm-guest
modules=(virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mem virtio_balloon virtio_blk)

die() {
	printf 'tests/guest/kernel.sh: %s\n' "$*" >&2
	exit 1
}

if [ -f "$cache/kernel/vmlinux" ]; then
	printf '%s\n' "$cache/kernel"
	exit 0
fi

package_name() {
	apt-cache depends linux-image-amd64 2> /dev/null | awk '$1 == "Depends:" { print $2; exit }'
}

package=$(package_name)
if [ -z "$package" ]; then
	# No package lists here, as on a fresh machine image.
	as_root=()
	[ "$(id -u)" -eq 0 ] || as_root=(sudo)
	"${as_root[@]}" apt-get -qq update > /dev/null || die "apt-get update failed"
	package=$(package_name)
	[ -n "$package" ] || die "no package linux-image-amd64 here"
fi

mkdir -p "$cache"
tmp=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
(cd "$tmp" && apt-get -qq -o "APT::Sandbox::User=$(id -un)" download "$package" > log 2>&1) ||
	die "$package: cannot be downloaded: $(tail -1 "$tmp/log")"
wanted=('./boot/vmlinuz-*')
for m in "${modules[@]}"; do
	wanted+=("*/$m.ko" "*/$m.ko.xz")
done
# tar reports the patterns that match nothing (one of .ko and .ko.xz): what is missing shows below.
dpkg-deb --fsys-tarfile "$tmp/$package"_*.deb | tar -C "$tmp" -x --wildcards "${wanted[@]}" 2> "$tmp/log" || true
image=$(echo "$tmp"/boot/vmlinuz-*)
[ -f "$image" ] || die "$package: no kernel in it: $(tail -1 "$tmp/log")"

mkdir -p "$tmp/kernel/modules"
find "$tmp/lib" -name '*.ko.xz' -exec xz -d '{}' +
find "$tmp/lib" -name '*.ko' -exec cp -t "$tmp/kernel/modules" '{}' +
# The compressed kernel is in the middle of the image; what follows it is not xz's concern.
offset=$(LC_ALL=C grep -aboP -m1 '\xfd7zXZ\x00' "$image" | head -1 | cut -d: -f1 || true)
tail -c "+$((${offset:-0} + 1))" "$image" | xz -dcq --single-stream > "$tmp/kernel/vmlinux" 2> /dev/null || true
[ "$(head -c 4 "$tmp/kernel/vmlinux")" = $'\x7fELF' ] || cp "$image" "$tmp/kernel/vmlinux"
# Somebody else may have done the same meanwhile: theirs is as good.
mv -T "$tmp/kernel" "$cache/kernel" 2> /dev/null || [ -f "$cache/kernel/vmlinux" ] || die "$cache/kernel: cannot be made"
printf '%s\n' "$cache/kernel"
