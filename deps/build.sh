#!/bin/bash
# Build the C libraries that the tools link, static under musl, into DIR/include and DIR/lib.
#
#   deps/build.sh DIR
#
# Each library is a word of LIBRARIES, a line of sources.sum and a function build_NAME. The sources are the distribution's
# own source packages: apt checks their signatures, sources.sum pins their bytes. They are kept in $FM_DEPS_CACHE
# (default: ${XDG_CACHE_HOME:-~/.cache}/fm-deps); what is there already needs no network, no apt and no root.
#
# An optional library is left out, with a word about it, when it cannot be had: DIR/lib then has an empty archive of its name.
#
# DIR/built/NAME says what a library was built from (source and recipe): only one that differs is built again.
set -euo pipefail

LIBRARIES=(jansson expat lz4 xxhash libsodium libmemcached zookeeper)
OPTIONAL=(intel-ipsec-mb)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${FM_DEPS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fm-deps}
tmp=

die() {
	printf 'deps/build.sh: %s\n' "$*" >&2
	exit 1
}

cleanup() {
	[ -z "$tmp" ] || rm -rf "$tmp"
}

# --- sources

# The tarball's name that sources.sum pins for a library.
tarball_of() {
	local name
	name=$(awk -v lib="$1" '$2 ~ "^" lib "_" { print $2 }' "$here/sources.sum")
	[ -n "$name" ] || die "$1: no line in deps/sources.sum"
	printf '%s\n' "$name"
}

sum_is_right() {
	local want
	want=$(awk -v f="$(basename "$1")" '$2 == f { print $1 }' "$here/sources.sum")
	[ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$want" ]
}

# Copies of the system's apt sources with deb-src in place of deb, for a private apt: nothing below /etc or /var changes.
private_sources() {
	local f to=$1
	for f in /etc/apt/sources.list.d/*.sources; do
		[ ! -f "$f" ] || sed 's/^Types:.*/Types: deb-src/' "$f" > "$to/$(basename "$f")"
	done
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ ! -f "$f" ] || sed -nE 's/^[[:space:]]*deb(-src)?[[:space:]]/deb-src /p' "$f" | sort -u > "$to/$(basename "$f")"
	done
}

# Bring the named tarballs' packages into the cache by apt. Arguments: library names.
fetch() {
	local apt=$tmp/apt lib tarball opts log=$tmp/apt.log
	command -v apt-get > /dev/null ||
		die "$*: no apt-get here; put the files that deps/sources.sum lists into $cache"
	mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/get"
	private_sources "$apt/sources"
	opts=(-qq
		-o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$apt/sources"
		-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache"
		-o "Acquire::Languages=none" -o "Acquire::Retries=3" -o "APT::Sandbox::User=$(id -un)")
	# A third party's repository without sources makes this fail; what counts is whether ours arrive.
	apt-get "${opts[@]}" update > "$log" 2>&1 || true
	compgen -G "$apt/lists/*Sources*" > /dev/null ||
		die "$*: apt-get reaches no archive with source packages: is there a network?" \
			"(or put the files that deps/sources.sum lists into $cache)"
	for lib; do
		tarball=$(tarball_of "$lib")
		# --tar-only: the packaging's own tarball is not needed, and some mirrors do not have it.
		(cd "$apt/get" && apt-get "${opts[@]}" source --download-only --tar-only "$lib") >> "$log" 2>&1 ||
			die "$lib: cannot get its source package: $(grep -E '^[EW]:' "$log" | tail -1 || true)" \
				"(or put $tarball into $cache)"
		[ -f "$apt/get/$tarball" ] ||
			die "$lib: this distribution has $(cd "$apt/get" && echo "${lib}"_*.orig.tar.*)," \
				"not $tarball: put that into $cache"
		sum_is_right "$apt/get/$tarball" || die "$lib: $tarball: SHA-256 differs from deps/sources.sum"
		# A rename, so that a build at the same time never sees half a file.
		cp "$apt/get/$tarball" "$cache/$tarball.$$"
		mv "$cache/$tarball.$$" "$cache/$tarball"
	done
}

# --- recipes: each runs in the unpacked source, and installs into $out

build_jansson() {
	cmake_static -DJANSSON_BUILD_DOCS=OFF -DJANSSON_BUILD_SHARED_LIBS=OFF -DJANSSON_WITHOUT_TESTS=ON -DJANSSON_EXAMPLES=OFF
	cmake --build build -j"$(nproc)" --target jansson
	install -m 644 build/include/jansson.h build/include/jansson_config.h "$out/include"
	install -m 644 build/lib/libjansson.a "$out/lib"
}

# Without document types (XML_DTD), which libvirt's documents have none of: so without entities that expand.
build_expat() {
	cd expat/lib
	printf '#define %s\n' 'BYTEORDER 1234' 'HAVE_GETRANDOM 1' 'HAVE_UNISTD_H 1' 'XML_CONTEXT_BYTES 1024' > expat_config.h
	compile_static libexpat.a -I. xmlparse.c xmlrole.c xmltok.c
	install -m 644 expat.h expat_external.h "$out/include"
}

# lz4's own `make install` builds a shared library too.
build_lz4() {
	cd lib
	compile_static liblz4.a '-DXXH_NAMESPACE=LZ4_' lz4.c lz4hc.c lz4frame.c xxhash.c
	install -m 644 lz4.h "$out/include"
}

# Used as a header alone (XXH_INLINE_ALL).
build_xxhash() {
	install -m 644 xxhash.h "$out/include"
}

# The tarball has no configure script, and autoreconf and configure take six times as long as the library: these are the
# definitions that configure finds with musl on x86-64, but for the assembler version of salsa20, which is not used. Parts
# for one kind of CPU switch it on by themselves and are chosen at run time.
build_libsodium() {
	local defs
	[ "$(uname -m)" = x86_64 ] || die "libsodium: no recipe for $(uname -m), only for x86_64"
	cd src/libsodium
	sed -e 's/@VERSION@/1.0.18/; s/@SODIUM_LIBRARY_VERSION_MAJOR@/10/; s/@SODIUM_LIBRARY_VERSION_MINOR@/3/' \
		-e '/@SODIUM_LIBRARY_MINIMAL_DEF@/d' include/sodium/version.h.in > include/sodium/version.h
	defs=(-Iinclude -Iinclude/sodium -DCONFIGURED=1 -DNATIVE_LITTLE_ENDIAN=1 -DHAVE_PTHREAD=1 -DHAVE_CPUID=1
		-DHAVE_TI_MODE=1 -DHAVE_INLINE_ASM=1 -DHAVE_AVX_ASM=1 -DHAVE_ATOMIC_OPS=1 -DHAVE_WEAK_SYMBOLS=1
		-DCPU_UNALIGNED_ACCESS=1
		-DHAVE_MMINTRIN_H=1 -DHAVE_EMMINTRIN_H=1 -DHAVE_PMMINTRIN_H=1 -DHAVE_TMMINTRIN_H=1 -DHAVE_SMMINTRIN_H=1
		-DHAVE_AVXINTRIN_H=1 -DHAVE_AVX2INTRIN_H=1 -DHAVE_WMMINTRIN_H=1
		-DHAVE_SYS_MMAN_H=1 -DHAVE_SYS_RANDOM_H=1 -DHAVE_MMAP=1 -DHAVE_MLOCK=1 -DHAVE_MADVISE=1 -DHAVE_MPROTECT=1
		-DHAVE_GETRANDOM=1 -DHAVE_GETENTROPY=1 -DHAVE_POSIX_MEMALIGN=1 -DHAVE_GETPID=1 -DHAVE_NANOSLEEP=1
		-DHAVE_EXPLICIT_BZERO=1)
	mapfile -t files < <(find . -name '*.c' | LC_ALL=C sort)
	compile_static libsodium.a "${defs[*]} -fno-strict-aliasing" "${files[@]}" \
		crypto_scalarmult/curve25519/sandy2x/sandy2x.S
	install -m 644 include/sodium.h "$out/include"
	mkdir -p "$out/include/sodium"
	install -m 644 include/sodium/*.h "$out/include/sodium"
}

# Of this large library only AES-256-GCM, for CPUs with VAES and AVX-512 and for those with AES-NI alone: three files, without C library.
# The headers' folder is its own, so that a distribution's copy is never taken for it.
build_intel-ipsec-mb() {
	local nasm f objects=()
	[ "$(uname -m)" = x86_64 ] || die "intel-ipsec-mb: no recipe for $(uname -m), only for x86_64"
	nasm=$(assembler)
	cd lib
	# The functions for nonces of any length, which nobody calls, take most of the time.
	sed -i '/^MKGLOBAL(FN_NAME(enc_var_iv,_)/,/^mksection stack-noexec/{/^mksection/!d}' avx512_t2/gcm_api_vaes_avx512.inc
	for f in avx512_t2/aes256_gcm_by48_api_vaes_avx512 sse_t1/gcm256_api_by8_sse x86_64/aes_keyexp_256; do
		objects+=("$f.o")
	done
	printf '%s\n' "${objects[@]%.o}" | xargs -P "$(nproc)" -I '{}' \
		"$nasm" -f elf64 -X gnu -I. -Iinclude/ -DLINUX -D__linux__ -o '{}.o' '{}.asm'
	rm -f libIPSec_MB.a
	ar rcsD libIPSec_MB.a "${objects[@]}"
	mkdir -p "$out/ipsec-mb"
	install -m 644 libIPSec_MB.a "$out/lib"
	install -m 644 intel-ipsec-mb.h "$out/ipsec-mb/fm-ipsec-mb.h"
}

# Prints the path of nasm: the system's, or one built for this run.
assembler() {
	if ! command -v nasm; then
		[ -x "$tmp/nasm/nasm" ] || {
			sum_is_right "$cache/$(tarball_of nasm)" || fetch nasm
			mkdir -p "$tmp/nasm"
			tar -xf "$cache/$(tarball_of nasm)" -C "$tmp/nasm" --strip-components=1
			(cd "$tmp/nasm" && ./configure && make -j"$(nproc)" nasm) > "$tmp/nasm.log" 2>&1
		}
		printf '%s\n' "$tmp/nasm/nasm"
	fi
}

# libmemcached is written in C++ of a kind that needs no C++ library: the C headers under C++ names, which cxx_headers makes,
# are enough, and the archives end up with C symbols alone.
build_libmemcached() {
	local cxx=$PWD/musl-g++ headers=$PWD/cxx-headers
	cxx_headers "$headers"
	printf '#!/bin/sh\nREALGCC=g++ exec musl-gcc -nostdinc++ -isystem "%s" -fno-exceptions -fno-rtti "$@"\n' \
		"$headers" > "$cxx"
	chmod +x "$cxx"
	# Its receive buffer of 8 KiB takes 9 calls of recv for a reply of 16 pages, one of 80 KiB takes 4.
	sed -i 's/^\(#define MEMCACHED_MAX_BUFFER\) .*/\1 81920/' include/libmemcached-1.0/limits.h
	grep -q '^#define MEMCACHED_MAX_BUFFER 81920$' include/libmemcached-1.0/limits.h
	cmake_static -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_CXX_FLAGS="$sections -DNDEBUG -ffile-prefix-map=$PWD=." \
		-DCMAKE_CXX_ARCHIVE_CREATE='<CMAKE_AR> rcsD <TARGET> <LINK_FLAGS> <OBJECTS>' -DCMAKE_CXX_ARCHIVE_FINISH= \
		-DBUILD_TESTING=OFF -DENABLE_SASL=OFF -DENABLE_MEMASLAP=OFF -DENABLE_DTRACE=OFF -DENABLE_OPENSSL_CRYPTO=OFF \
		-DCMAKE_INSTALL_PREFIX="$PWD/to" -DCMAKE_INSTALL_LIBDIR=lib
	cmake --build build -j"$(nproc)" --target libhashkit libmemcached libmemcachedutil libmemcachedprotocol
	cmake --install build --component lib
	cmake --install build --component dev
	install -m 644 to/lib/libhashkit.a to/lib/libmemcached.a "$out/lib"
	cp -R to/include/. "$out/include"
}

# The C library's headers as C++ names them, in folder $1.
cxx_headers() {
	local h
	mkdir "$1"
	for h in assert ctype errno inttypes limits math stdarg stdint stdio string time; do
		printf '#include <%s.h>\n' "$h" > "$1/c$h"
	done
	printf '#include <stddef.h>\nnamespace std { using ::size_t; using ::ptrdiff_t; }\n' > "$1/cstddef"
	printf '#include <stdlib.h>\nnamespace std { using ::size_t; using ::malloc; using ::calloc; using ::realloc; using ::free; using ::abort; }\n' > "$1/cstdlib"
	: > "$1/atomic"
	: > "$1/ciso646"
	printf '%s\n' '#pragma once' '#include <stddef.h>' \
		'namespace std { struct nothrow_t {}; extern const nothrow_t nothrow; }' \
		'void *operator new(size_t, const std::nothrow_t &) noexcept;' \
		'void *operator new[](size_t, const std::nothrow_t &) noexcept;' > "$1/new"
	printf '#include <new>\n' > "$1/memory"
}

# The C client alone. Its records come from zookeeper.jute, by a generator of our own: upstream's is written in Java.
build_zookeeper() {
	local jute=$PWD/zookeeper-jute/src/main/resources/zookeeper.jute
	cd zookeeper-client/zookeeper-client-c
	mkdir -p generated
	awk -v part=h -f "$here/jute.awk" "$jute" > generated/zookeeper.jute.h
	awk -v part=c -f "$here/jute.awk" "$jute" > generated/zookeeper.jute.c
	cmake_static -DWITH_CYRUS_SASL=OFF -DWITH_OPENSSL=OFF -DWANT_CPPUNIT=OFF -DWANT_SOCK_CLOEXEC=ON \
		-DCMAKE_C_FLAGS="$sections -DNDEBUG -ffile-prefix-map=$PWD=."
	cmake --build build -j"$(nproc)" --target zookeeper hashtable
	rm -f libzookeeper_mt.a
	find build/CMakeFiles/zookeeper.dir build/CMakeFiles/hashtable.dir -name '*.o' | LC_ALL=C sort |
		xargs ar rcsD libzookeeper_mt.a
	install -m 644 libzookeeper_mt.a "$out/lib"
	mkdir -p "$out/include/zookeeper"
	install -m 644 include/{zookeeper,zookeeper_log,zookeeper_version,proto,recordio}.h generated/zookeeper.jute.h \
		"$out/include/zookeeper"
}

# So that the tools get of a library what they call, and no more.
sections='-ffunction-sections -fdata-sections'

# Compile C files into an archive of $out/lib. Arguments: its name, compiler flags in one word, files.
compile_static() {
	local archive=$1 flags=$2
	shift 2
	# shellcheck disable=SC2016 # $1 and $2 are the inner shell's
	printf '%s\0' "$@" | xargs -0 -P "$(nproc)" -I '{}' sh -c 'musl-gcc -O2 -fPIC -DNDEBUG -w $1 -c -o "$2.o" "$2"' \
		sh "$flags $sections -ffile-prefix-map=$PWD=." '{}'
	rm -f "$archive"
	ar rcsD "$archive" "${@/%/.o}"
	install -m 644 "$archive" "$out/lib"
}

# Small: nothing of these is on a page's way. Configure the source here into build/, for static archives that do not depend on where and when they were built.
cmake_static() {
	cmake -S . -B build -DCMAKE_BUILD_TYPE=MinSizeRel -DCMAKE_C_COMPILER=musl-gcc \
		-DCMAKE_C_FLAGS="$sections -ffile-prefix-map=$PWD=." -DCMAKE_EXE_LINKER_FLAGS=-static -DBUILD_SHARED_LIBS=OFF \
		-DCMAKE_C_ARCHIVE_CREATE='<CMAKE_AR> rcsD <TARGET> <LINK_FLAGS> <OBJECTS>' -DCMAKE_C_ARCHIVE_FINISH= \
		-DCMAKE_POLICY_VERSION_MINIMUM=3.5 -Wno-dev "$@"
}

# --- main

# Variables of the calling make must not reach the makes below.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES CFLAGS LDFLAGS

[ $# -eq 1 ] || {
	echo 'usage: deps/build.sh DIR' >&2
	exit 2
}
for prog in musl-gcc g++ cmake make bison flex; do
	command -v "$prog" > /dev/null || die "$prog: not found: run tests/install.sh build"
done
tmp=$(mktemp -d)
trap cleanup EXIT
mkdir -p "$1/include" "$1/lib" "$1/built" "$cache"
out=$(cd "$1" && pwd)
# Two makes on one folder: the second waits, and then finds everything built.
exec 9> "$out/built/.lock"
flock 9

# What a library is built from, as one line: the sum of its source's sum, its recipe, and the helpers that this uses.
origin() {
	local recipe helper
	recipe=$(declare -f "build_$1")
	{
		awk -v f="$(tarball_of "$1")" '$2 == f' "$here/sources.sum"
		printf '%s\n' "$recipe"
		for helper in cmake_static compile_static cxx_headers assembler; do
			[[ $recipe != *"$helper"* ]] || declare -f "$helper"
		done
		[[ $recipe != *jute.awk* ]] || cat "$here/jute.awk"
	} | sha256sum | cut -d' ' -f1
}

todo=() missing=()
for lib in "${LIBRARIES[@]}"; do
	[ "$(cat "$out/built/$lib" 2> /dev/null || true)" != "$(origin "$lib")" ] || continue
	todo+=("$lib")
	sum_is_right "$cache/$(tarball_of "$lib")" || missing+=("$lib")
done
[ ${#missing[@]} -eq 0 ] || fetch "${missing[@]}"

# Unpack and build one library, with its output in $tmp/NAME.log. Sets status.
build() {
	mkdir -p "$tmp/$1"
	rm -f "$out/built/$1"
	# A subshell of its own, and build itself no condition: `set -e` must hold inside the recipe.
	set +e
	(
		set -e
		sum_is_right "$cache/$(tarball_of "$1")" || fetch "$1"
		tar -xf "$cache/$(tarball_of "$1")" -C "$tmp/$1" --strip-components=1
		cd "$tmp/$1"
		"build_$1"
	) > "$tmp/$1.log" 2>&1
	status=$?
	set -e
	[ "$status" -ne 0 ] || origin "$1" > "$out/built/$1"
}

for lib in "${todo[@]}"; do
	build "$lib"
	if [ "$status" -ne 0 ]; then
		cat "$tmp/$lib.log" >&2
		die "$lib: its build failed, see above"
	fi
done

for lib in "${OPTIONAL[@]}"; do
	[ "$(cat "$out/built/$lib" 2> /dev/null || true)" != "$(origin "$lib")" ] || continue
	build "$lib"
	[ "$status" -ne 0 ] || continue
	printf 'deps/build.sh: %s: goes without: %s\n' "$lib" "$(tail -1 "$tmp/$lib.log")" >&2
	rm -rf "$out/ipsec-mb" "$out/lib/libIPSec_MB.a"
	ar rcsD "$out/lib/libIPSec_MB.a"
done
