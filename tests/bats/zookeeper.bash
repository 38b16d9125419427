# Real ZooKeeper servers for bats tests: `load zookeeper` after `load helper` and `load memcached`.
#
#   zk_start NAME                 start a server of its own, wait until it serves; sets ZK_PID[NAME] and ZK_AT[NAME], its address
#   zk_start_ensemble NAME...     start an ensemble of three or more, wait until it serves
#   zk_run NAME                   start it again, on the data it has (zk_serves NAME waits)
#   zk_kill NAME...               SIGKILL, and wait until it is gone
#   zk_leader                     sets ZK_LEADER, its name
#   zk NAME COMMAND PATH [DATA]   ask it: ls, get, stat, create, set, rm (tests/proxy/zkctl.py)
#   zk_link NAME SERVER           a link to a server that can be cut (link_cut NAME); ZK_AT[NAME] is where it listens; what
#                                 goes over it is in $FM_TMP/NAME.capture
#   zk_setup                      instead of fm_setup: there may be a second host, whose run directory is FM_RUN_DIR_2
#   host_id                       of the first host; host_id_2 of the second
#   second_host [ARGS...]         start another fm-faultd there (on_second CMD... runs a command there); stop_second_host

declare -gA ZK_PID ZK_AT LINK_PID
ZK_CLASSES=/etc/zookeeper/conf_example:/usr/share/java/zookeeper.jar

zkctl() {
	"${FM_PYTHON:-python3}" "$FM_ROOT/tests/proxy/zkctl.py" "$@"
}

zk() {
	local at=${ZK_AT[$1]}
	shift
	zkctl "$at" "$@"
}

# zk_configure NAME PORT [LINE...]: further lines of its configuration. Ticks of 500 ms: sessions of 1 to 10 s.
zk_configure() {
	local name=$1 port=$2 dir=$FM_TMP/zk-$1
	shift 2
	mkdir -p "$dir"
	printf '%s\n' tickTime=500 initLimit=20 syncLimit=10 "dataDir=$dir" clientPortAddress=127.0.0.1 "clientPort=$port" \
		admin.enableServer=false maxClientCnxns=0 "$@" > "$dir/zoo.cfg"
	ZK_AT[$name]=127.0.0.1:$port
}

zk_run() {
	local dir=$FM_TMP/zk-$1
	# Small and quick to start; its data is not for keeping.
	java -Xmx96m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dzookeeper.forceSync=no -Dzookeeper.nio.numSelectorThreads=1 \
		-Dzookeeper.preAllocSize=256 -Dzookeeper.root.logger=WARN,CONSOLE -cp "$ZK_CLASSES" \
		org.apache.zookeeper.server.quorum.QuorumPeerMain "$dir/zoo.cfg" \
		3>&- < /dev/null >> "$FM_TMP/zk-$1.log" 2>&1 &
	ZK_PID[$1]=$!
	track $!
}

zk_serves_now() {
	zkctl mode "${ZK_AT[$1]}" > /dev/null 2>&1
}

zk_serves() {
	wait_for 60 zk_serves_now "$1" || {
		tail -20 "$FM_TMP/zk-$1.log" >&2
		return 1
	}
}

zk_start() {
	zk_configure "$1" "$(zkctl ports 1)"
	zk_run "$1"
	zk_serves "$1"
}

zk_start_ensemble() {
	local ports servers=() i=0 name
	mapfile -t ports < <(zkctl ports $((3 * $#)))
	for name; do
		servers+=("server.$((++i))=127.0.0.1:${ports[3 * i - 2]}:${ports[3 * i - 1]}")
	done
	i=0
	for name; do
		zk_configure "$name" "${ports[3 * i]}" "${servers[@]}"
		echo $((++i)) > "$FM_TMP/zk-$name/myid"
		zk_run "$name"
	done
	for name; do
		zk_serves "$name"
	done
}

zk_kill() {
	local name
	for name; do
		kill -KILL "${ZK_PID[$name]}"
		wait "${ZK_PID[$name]}" 2> /dev/null || true
	done
}

zk_leader() {
	local name
	ZK_LEADER=
	for name in "${!ZK_PID[@]}"; do
		if [ "$(zkctl mode "${ZK_AT[$name]}" 2> /dev/null)" = leader ]; then
			# shellcheck disable=SC2034 # for the tests
			ZK_LEADER=$name
			return 0
		fi
	done
	return 1
}

zk_link() {
	local out=$FM_TMP/$1.link
	# Not by zkctl: a function in the background is a shell, and the link its child.
	"${FM_PYTHON:-python3}" "$FM_ROOT/tests/proxy/zkctl.py" link "${ZK_AT[$2]}" "$FM_TMP/$1.capture" 3>&- < /dev/null > "$out" 2> "$out.err" &
	LINK_PID[$1]=$!
	track $!
	wait_for 10 test -s "$out" || {
		cat "$out.err" >&2
		return 1
	}
	ZK_AT[$1]=127.0.0.1:$(head -1 "$out")
}

link_cut() {
	kill -KILL "${LINK_PID[$1]}"
	wait "${LINK_PID[$1]}" 2> /dev/null || true
}

zk_setup() {
	fm_setup
	export FM_RUN_DIR_2=$FM_TMP/run2
}

host_id() {
	cat "$FM_RUN_DIR/host.id"
}

host_id_2() {
	cat "$FM_RUN_DIR_2/host.id"
}

on_second() {
	FM_RUN_DIR=$FM_RUN_DIR_2 "$@"
}

# Sets FAULTD_2.
second_host() {
	local first=$FAULTD_PID dir=$FM_RUN_DIR
	FM_RUN_DIR=$FM_RUN_DIR_2
	start_faultd -v "$@"
	FAULTD_2=$FAULTD_PID FAULTD_PID=$first FM_RUN_DIR=$dir
}

stop_second_host() {
	local FAULTD_PID=$FAULTD_2
	stop_faultd
}

# zk_uri NAME... : of these servers, for --registry
zk_uri() {
	local name list=
	for name; do
		list+=${list:+,}${ZK_AT[$name]}
	done
	echo "zookeeper://$list"
}

# --- what must be there, for wait_for

zk_has() {
	zk "$1" get "$2" > /dev/null 2>&1
}

zk_lacks() {
	[ "$(zk "$1" get "$2" 2>&1 > /dev/null)" = 'no such znode' ]
}

# zk_count NAME PATH N: so many children
zk_count() {
	local names
	names=$(zk "$1" ls "$2" 2> /dev/null) && [ "$(grep -c . <<< "$names")" -eq "$3" ]
}

faultd_said() {
	grep -q -- "$1" "$FM_TMP/faultd.log"
}
