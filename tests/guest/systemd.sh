#!/bin/bash
# An initramfs that is a small system of this distribution's systemd, with fm's programs and the units of contrib installed as their
# comments say; a service obeys lines as tests/guest/init does.
#
#   tests/guest/systemd.sh OUT PROGRAM...
#
# The programs are in /usr/local/sbin, and fm-online in /usr/local/bin. The unit of fm-online is enabled.
set -euo pipefail

[ $# -ge 1 ] || {
	echo 'usage: tests/guest/systemd.sh OUT PROGRAM...' >&2
	exit 2
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
contrib=$here/../../contrib
out=$1
shift

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp"/{dev,proc,sys,run,tmp,root,var/log,var/lib,usr/{bin,sbin,lib,lib64,local/{bin,sbin}},etc/{systemd/system,default}}
for d in bin sbin lib lib64; do
	ln -s "usr/$d" "$tmp/$d"
done
ln -s ../run "$tmp/var/run"

# Programs with the libraries that they load.
with_libraries() {
	local f library
	for f; do
		install -D "$f" "$tmp$f"
		for library in $(ldd "$f" | grep -o '/[^ ]*'); do
			[ -e "$tmp$library" ] || install -D "$library" "$tmp$library"
		done
	done
}
with_libraries /usr/lib/systemd/systemd /usr/lib/systemd/systemd-journald /usr/lib/systemd/systemd-shutdown /usr/bin/systemctl /usr/bin/systemd-tty-ask-password-agent
ln -s usr/lib/systemd/systemd "$tmp/init"
units=(sysinit basic multi-user network-online network shutdown umount final local-fs local-fs-pre swap sockets timers paths slices rescue
	emergency poweroff)
for u in "${units[@]/%/.target}" systemd-journald{.service,.socket,-dev-log.socket} systemd-poweroff.service; do
	install -D -m 644 "/usr/lib/systemd/system/$u" "$tmp/usr/lib/systemd/system/$u"
done
mkdir "$tmp/usr/lib/systemd/system"/{sysinit,sockets}.target.wants
ln -s ../systemd-journald.service "$tmp/usr/lib/systemd/system/sysinit.target.wants"
ln -s ../systemd-journald.socket "$tmp/usr/lib/systemd/system/sockets.target.wants"
ln -s multi-user.target "$tmp/usr/lib/systemd/system/default.target"
echo 'root:x:0:0:root:/root:/bin/sh' > "$tmp/etc/passwd"
echo 'root:x:0:' > "$tmp/etc/group"
echo 0123456789abcdef0123456789abcdef > "$tmp/etc/machine-id"
cp /usr/lib/os-release "$tmp/etc/os-release"

busybox=$(command -v busybox)
install "$busybox" "$tmp/usr/bin/busybox"
for a in $(busybox --list); do
	[ -e "$tmp/usr/bin/$a" ] || ln -s busybox "$tmp/usr/bin/$a"
done

for f; do
	strip -o "$tmp/usr/local/sbin/$(basename "$f")" "$f"
done
mv "$tmp/usr/local/sbin/fm-online" "$tmp/usr/local/bin"
install -m 644 -t "$tmp/etc/systemd/system" "$contrib/fm-faultd.service" "$contrib/systemd/fm-online.service"
# As `systemctl enable` does.
systemctl --root="$tmp" enable fm-online.service > "$tmp/tmp/log" 2>&1 || {
	cat "$tmp/tmp/log" >&2
	exit 1
}

cat > "$tmp/etc/systemd/system/lines.service" << 'EOT'
[Unit]
Description=Obey lines from the second serial port
[Service]
ExecStart=/bin/sh /etc/lines
EOT
mkdir -p "$tmp/etc/systemd/system/multi-user.target.wants"
ln -s ../lines.service "$tmp/etc/systemd/system/multi-user.target.wants"
cat > "$tmp/etc/lines" << 'EOT'
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
stty raw -echo
echo '@ready'
while IFS= read -r line; do
	(eval "$line")
	echo "@done $?"
done
EOT
(cd "$tmp" && find . -mindepth 1 | sort | cpio -o -H newc -R 0:0 --quiet) > "$out"
