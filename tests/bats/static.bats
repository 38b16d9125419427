#!/usr/bin/env bats
# The tools are single files that run on any x86-64 Linux: static, and small.

load helper

@test "every tool is static: no program interpreter, nothing to link at run time" {
	for tool in "$FM_BIN"/*; do
		echo "$tool"
		run readelf -lW "$tool"
		[ "$status" -eq 0 ]
		[[ $output != *INTERP* ]]
		run readelf -dW "$tool"
		[[ $output != *NEEDED* ]]
	done
}

@test "every tool is below 1 MiB when stripped" {
	for tool in "$FM_BIN"/*; do
		strip -o "$FM_TMP/stripped" "$tool"
		size=$(stat -c %s "$FM_TMP/stripped")
		echo "$tool: $size bytes"
		[ "$size" -lt 1048576 ]
	done
}

@test "every folder below cmd/ is a tool" {
	for dir in "$FM_ROOT"/cmd/*/; do
		echo "$dir"
		[ -x "$FM_BIN/$(basename "$dir")" ]
	done
}

@test "every tool answers --help and --version on stdout with exit code 0" {
	for tool in "$FM_BIN"/*; do
		for option in --help --version; do
			echo "$tool $option"
			timeout 10 "$tool" "$option" > "$FM_TMP/out" 2> "$FM_TMP/err"
			grep -q "$(basename "$tool")" "$FM_TMP/out"
			[ ! -s "$FM_TMP/err" ]
		done
	done
}

@test "every tool refuses an unknown option in one line with exit code 2" {
	for tool in "$FM_BIN"/*; do
		echo "$tool"
		run timeout 10 "$tool" --no-such-option
		[ "$status" -eq 2 ]
		[[ ${lines[0]} == "$(basename "$tool"): "*no-such-option* ]]
		[ "${#lines[@]}" -eq 1 ]
	done
}
