#!/bin/sh
# Start a Sentinel. What it learns (who is the master, who are the others) it writes into its own configuration, which
# lies on its volume: after an outage of everything the Sentinels still know whose data is the latest.
#
# ME: this Sentinel's host name. FIRST: the server that is the master of a new farm. SENTINEL_PASSWORD: a file.
set -eu
config=${CONFIG_DIR:-/etc/redis}
data=${DATA_DIR:-/data}
port=${REDIS_PORT:-6379}
own=$data/sentinel.conf
umask 077
if [ ! -s "$own" ]; then
    {
        cat "$config/sentinel.conf"
        echo "sentinel announce-ip $ME"
        echo "sentinel monitor bloomfarm $FIRST $port 2"
        echo "sentinel down-after-milliseconds bloomfarm 3000"
        echo "sentinel failover-timeout bloomfarm 15000"
        echo "sentinel parallel-syncs bloomfarm 1"
        echo "sentinel auth-user bloomfarm sentinel"
    } >"$own.new"
    mv "$own.new" "$own"
fi
# The password of today, whatever it was when the file was made.
grep -v '^sentinel auth-pass ' "$own" >"$own.new"
echo "sentinel auth-pass bloomfarm $(cat "$SENTINEL_PASSWORD")" >>"$own.new"
mv "$own.new" "$own"
exec valkey-server "$own" --sentinel "$@"
