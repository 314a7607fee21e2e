#!/bin/sh
# Start one server of several, as the master or as its replica: the Sentinels say who is the master.
#
# With no Sentinel to ask, a server without data is one of a new farm: the first one is the master. A server with data
# waits: starting as the master of old data, or as the replica of an empty server, would lose what was accepted.
#
# ME, FIRST: host names of this server and of the first one. SENTINELS: host:port of each. REPLICA_PASSWORD: a file.
set -eu
config=${CONFIG_DIR:-/etc/redis}
data=${DATA_DIR:-/data}
run=${RUN_DIR:-/run/redis}
port=${REDIS_PORT:-6379}

master() {
    for sentinel in $SENTINELS; do
        found=$(timeout 3 valkey-cli -h "${sentinel%:*}" -p "${sentinel##*:}" \
            sentinel get-master-addr-by-name bloomfarm 2>/dev/null | head -n 1) || continue
        case $found in
        '' | *' '*) ;;
        *)
            echo "$found"
            return
            ;;
        esac
    done
}

leader=$(master)
while [ -z "$leader" ]; do
    if [ ! -d "$data/appendonlydir" ]; then
        leader=$FIRST
        break
    fi
    echo "start-redis: there is data, and no Sentinel says who is the master; asking again" >&2
    sleep 2
    leader=$(master)
done

umask 077
{
    cat "$config/redis.conf" "$config/replication.conf"
    echo "replica-announce-ip $ME"
    echo "replica-announce-port $port"
    echo "masterauth $(cat "$REPLICA_PASSWORD")"
    [ "$leader" = "$ME" ] || echo "replicaof $leader $port"
} >"$run/redis.conf"
echo "start-redis: the master is $leader, this is $ME"
exec valkey-server "$run/redis.conf" "$@"
