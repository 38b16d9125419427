#!/bin/bash
# An initramfs by the distribution's initramfs-tools, with the hook and the boot script of contrib installed as their comments say, for
# the kernel of kernel.sh. Then, instead of mounting a root file system, it obeys lines as tests/guest/init does. As root:
#
#   unshare --mount tests/guest/initramfs-tools.sh OUT FM_ONLINE
#
# In a mount namespace of its own, in which kernel modules, fm-online and the configuration are at their usual places; OUT is below none of them.
set -euo pipefail

[ $# -eq 2 ] || {
	echo 'usage: unshare --mount tests/guest/initramfs-tools.sh OUT FM_ONLINE' >&2
	exit 2
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
contrib=$here/../../contrib/initramfs-tools
out=$1
fm_online=$(realpath "$2")
kernel=$("$here/kernel.sh")
version=$(grep -aoz 'vermagic=[^ ]*' "$kernel/modules/virtio.ko" | tr -d '\0')
version=${version#vermagic=}

tmp=$(mktemp -d)
mount --make-rprivate /
mount -t tmpfs fm-test "$tmp"
trap 'umount -l "$tmp" && rmdir "$tmp"' EXIT

# No kernel is installed here.
mkdir "$tmp"/{upper,work,bin,etc}
mount -t overlay -o "lowerdir=/usr/lib,upperdir=$tmp/upper,workdir=$tmp/work" fm-test /usr/lib
mkdir -p "/usr/lib/modules/$version/kernel"
cp "$kernel"/modules/*.ko "/usr/lib/modules/$version/kernel"
depmod "$version" 2> "$tmp/log" || {
	cat "$tmp/log" >&2
	exit 1
}
# mkinitramfs asks with what a kernel can be compressed.
mount --bind "$tmp/etc" /boot
echo CONFIG_RD_GZIP=y > "/boot/config-$version"

mount --bind "$tmp/bin" /usr/local/bin
install -t /usr/local/bin "$fm_online"
mkdir "$tmp/conf"
cp -a /etc/initramfs-tools/. "$tmp/conf"
mount --bind "$tmp/conf" /etc/initramfs-tools
# Whatever this machine has there.
mkdir -p "$tmp/conf/conf.d"
echo MODULES=most > "$tmp/conf/conf.d/zz-fm-test"
install -D -t /etc/initramfs-tools/hooks "$contrib/hooks/fm-online"
install -D -t /etc/initramfs-tools/scripts/init-premount "$contrib/scripts/init-premount/fm-online"

# What follows it.
cat > /etc/initramfs-tools/scripts/init-premount/lines << 'EOT'
#!/bin/sh
if [ "$1" = prereqs ]; then
	echo fm-online
	exit 0
fi
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
stty raw -echo
echo '@ready'
while IFS= read -r line; do
	(eval "$line")
	echo "@done $?"
done
EOT
chmod +x /etc/initramfs-tools/scripts/init-premount/lines
mkinitramfs -c gzip -o "$tmp/image" "$version" > "$tmp/log" 2>&1 || {
	cat "$tmp/log" >&2
	exit 1
}
cp "$tmp/image" "$out"
