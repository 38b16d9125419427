#!/bin/bash
# libvirtd by hand, seeing nothing of the machine's own libvirt: run by tests/guest/libvirt.bash as
#
#   unshare --mount tests/guest/libvirtd.sh DIR
#
# Its configuration, state, logs and sockets are at the usual paths, of which this mount namespace has its own (/run, and folders
# below DIR). Guest memory in files is on a tmpfs, at libvirt's usual place. DIR/guest is seen as /run/guest, by every user.
set -euo pipefail

dir=$1
mount --make-rprivate /
mount -t tmpfs -o mode=755 fm-test /run
mkdir -p "$dir"/{etc,lib,cache,log,guest} /run/libvirt /run/guest
mount --bind "$dir/guest" /run/guest
for pair in etc:/etc/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
	mkdir -p "${pair#*:}"
	mount --bind "$dir/${pair%%:*}" "${pair#*:}"
done
mkdir -p /var/lib/libvirt/qemu/ram
mount -t tmpfs -o mode=755 fm-test /var/lib/libvirt/qemu/ram
# libvirtd asks for its usual user, even if told another one.
if ! getent passwd libvirt-qemu > /dev/null; then
	for f in passwd group; do
		cp "/etc/$f" "$dir/$f"
	done
	echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >> "$dir/passwd"
	echo 'libvirt-qemu:x:64055:' >> "$dir/group"
	mount --bind "$dir/passwd" /etc/passwd
	mount --bind "$dir/group" /etc/group
fi
cat > /etc/libvirt/qemu.conf << 'EOT'
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
EOT
cat > /etc/libvirt/libvirtd.conf << 'EOT'
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
EOT
exec libvirtd --config /etc/libvirt/libvirtd.conf
