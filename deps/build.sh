#!/bin/bash
# Build the C libraries that the tools link, static under musl, into DIR/include and DIR/lib.
#
#   deps/build.sh DIR
#
# Each library is a line of LIBRARIES, a line of sources.sum and a function build_NAME. The sources are the distribution's
# own source packages: apt checks their signatures, sources.sum pins their bytes. They are kept in $FM_DEPS_CACHE
# (default: ${XDG_CACHE_HOME:-~/.cache}/fm-deps); what is there already needs no network, no apt and no root.
set -euo pipefail

LIBRARIES=(jansson)

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

# Configure the source here into build/, for static archives that do not depend on where and when they were built.
cmake_static() {
	cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=musl-gcc \
		-DCMAKE_C_FLAGS="-ffile-prefix-map=$PWD=." -DCMAKE_EXE_LINKER_FLAGS=-static -DBUILD_SHARED_LIBS=OFF \
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
for prog in musl-gcc cmake make; do
	command -v "$prog" > /dev/null || die "$prog: not found: run tests/install.sh build"
done
tmp=$(mktemp -d)
trap cleanup EXIT
mkdir -p "$1/include" "$1/lib" "$cache"
out=$(cd "$1" && pwd)

missing=()
for lib in "${LIBRARIES[@]}"; do
	sum_is_right "$cache/$(tarball_of "$lib")" || missing+=("$lib")
done
[ ${#missing[@]} -eq 0 ] || fetch "${missing[@]}"

for lib in "${LIBRARIES[@]}"; do
	mkdir "$tmp/$lib"
	tar -xf "$cache/$(tarball_of "$lib")" -C "$tmp/$lib" --strip-components=1
	# A subshell of its own, not a condition: `set -e` must hold inside the recipe.
	set +e
	(set -e; cd "$tmp/$lib"; "build_$lib") > "$tmp/$lib.log" 2>&1
	status=$?
	set -e
	if [ "$status" -ne 0 ]; then
		cat "$tmp/$lib.log" >&2
		die "$lib: its build failed, see above"
	fi
done
