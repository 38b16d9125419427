#!/bin/bash
# Install what is missing for `make`, `make demo`, `make bench` or `make check`, on Debian and its kin.
#
#   tests/install.sh build|demo|bench|check
#
# Does nothing, and needs no rights, when all of it is there.
set -euo pipefail

build=(gcc g++ libc6-dev linux-libc-dev binutils make musl-tools cmake bison flex nasm xz-utils)
demo=("${build[@]}" qemu-system-x86 busybox-static cpio jq)
bench=("${build[@]}" memcached strace gnuplot-nox sqlite3)
check=("${demo[@]}" bats pkg-config python3 shellcheck cppcheck clang-tidy clang mandoc strace memcached zookeeper iproute2 util-linux
	libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients initramfs-tools-core systemd
	# the glibc sanitizer builds link these
	libjansson-dev libexpat1-dev libmemcached-dev libzookeeper-mt-dev libsodium-dev liblz4-dev libxxhash-dev)

# libFuzzer, which clang only recommends, has clang's version in its package's name.
case $(sed -n 's/^VERSION_ID="\{0,1\}\([0-9.]*\).*/\1/p' /etc/os-release 2> /dev/null) in
12) check+=(libclang-rt-14-dev) ;;
13) check+=(libclang-rt-19-dev) ;;
esac

die() {
	printf 'tests/install.sh: %s\n' "$*" >&2
	exit 1
}

case ${1-} in
build) wanted=("${build[@]}") ;;
demo) wanted=("${demo[@]}") ;;
bench) wanted=("${bench[@]}") ;;
check) wanted=("${check[@]}") ;;
*)
	echo 'usage: tests/install.sh build|demo|bench|check' >&2
	exit 2
	;;
esac

command -v dpkg-query > /dev/null || die "not a Debian-like system: install by hand: ${wanted[*]}"

missing=()
for p in "${wanted[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2> /dev/null || true)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
	command -v sudo > /dev/null || die "neither root nor sudo here: install by hand: ${missing[*]}"
	as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 "$@" >> "$log" 2>&1 \
		< /dev/null
}

printf 'tests/install.sh: installing %s\n' "${missing[*]}" >&2
# Old package lists name files that the mirror no longer has: renew them and try once more.
apt install --no-install-recommends "${missing[@]}" ||
	{ apt update && apt install --no-install-recommends "${missing[@]}"; } ||
	die "apt-get could not install ${missing[*]}: $(grep -E '^E:' "$log" | tail -1 || true)"
