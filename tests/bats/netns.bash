# Hosts of their own on one machine: `load netns` after `load helper` and `load memcached`. Each is a network namespace without a name,
# held by a process that teardown ends (or its own clock), so that nothing can be left behind. They are joined by a router, also one.
#
#   net_possible            can such namespaces be made here? Else NET_WHY says why not
#   net_start HOST...       make the hosts; NET_IP[HOST] is its address
#   on HOST CMD...          run a command there (a function of this file's makes a subshell; exec'ed, the pid is the command's)
#   net_mc_start HOST       memcached there, on port 11211; MC_AT[HOST], MC_PID[HOST]
#   net_faultd HOST [ARGS]  start_faultd there
#   net_down|net_up HOST    take its link down and up
#   net_drop HOST WHAT      the router silently drops what goes `to` or comes `from` the host; net_pass HOST WHAT ends that

declare -gA NET_PID NET_IP

net_possible() {
	local cmd
	for cmd in unshare nsenter ip; do
		requires "$cmd" || {
			NET_WHY="$cmd is missing"
			return 1
		}
	done
	NET_WHY=$(unshare --net ip link add x type veth peer name y 2>&1) || {
		NET_WHY="network namespaces cannot be made: ${NET_WHY:-not permitted}"
		return 1
	}
}

on() {
	local host=$1
	shift
	nsenter "--net=/proc/${NET_PID[$host]}/ns/net" "$@"
}

# A namespace and its holder.
net_host() {
	local at="$FM_TMP/net-$1"
	# shellcheck disable=SC2016 # the shell there expands it
	unshare --net sh -c 'echo > "$1"; exec sleep 900' sh "$at" 3>&- < /dev/null &
	NET_PID[$1]=$!
	track $!
	wait_for 10 test -s "$at"
	on "$1" ip link set lo up
}

net_start() {
	local host i=0
	net_host router
	on router sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
	for host; do
		i=$((i + 1))
		net_host "$host"
		NET_IP[$host]=10.99.$i.2
		on router ip link add "to-$host" type veth peer name eth0 netns "${NET_PID[$host]}"
		on router ip address add "10.99.$i.1/24" dev "to-$host"
		on router ip link set "to-$host" up
		on "$host" ip address add "10.99.$i.2/24" dev eth0
		net_up "$host"
	done
}

# A link that was down has lost its routes.
net_up() {
	on "$1" ip link set eth0 up
	on "$1" ip route replace default via "${NET_IP[$1]%.2}.1"
}

net_down() {
	on "$1" ip link set eth0 down
}

net_drop() {
	on router ip rule add "$2" "${NET_IP[$1]}" blackhole
	on router ip route flush cache
}

net_pass() {
	on router ip rule del "$2" "${NET_IP[$1]}" blackhole
}

# Servers are asked from the router: whatever is cut, it is not in the way.
mcctl() {
	on router "$FM_PYTHON" "$FM_PROXY/mcctl.py" "$@"
}

net_mc_start() {
	local as=()
	[ "$(id -u)" -ne 0 ] || as=(-u root)
	on "$1" memcached "${as[@]}" -M -t 1 -m 256 -l "${NET_IP[$1]}" -p 11211 3>&- < /dev/null >> "$FM_TMP/$1.log" 2>&1 &
	# shellcheck disable=SC2034 # for the tests
	MC_PID[$1]=$!
	track $!
	MC_AT[$1]=${NET_IP[$1]}:11211
	wait_for 10 mc_answers "${MC_AT[$1]}"
}

net_faultd() {
	local host=$1 real=$FM_BIN
	local FM_BIN=$FM_TMP/bin-$host
	shift
	# start_faultd and fm-faultd itself know programs by their folder.
	mkdir -p "$FM_BIN"
	ln -sf "$real"/* "$FM_BIN/"
	rm -f "$FM_BIN/fm-faultd"
	printf '#!/bin/sh\nexec nsenter --net=/proc/%s/ns/net %s/fm-faultd "$@"\n' "${NET_PID[$host]}" "$real" > "$FM_BIN/fm-faultd"
	chmod +x "$FM_BIN/fm-faultd"
	start_faultd "$@"
}
