#!/bin/sh
# A server in a namespace of its own, asked once. However this ends, nothing is left behind.
set -eu
netnsfs --check /mnt/netnsfs

namespace= log=
clean_up() {
    [ -z "$namespace" ] || {
        echo KILL >"$namespace/kill"
        rmdir "$namespace"
    }
    rm -f "$log"
}
trap clean_up EXIT
# Without this, a signal ends sh without the trap above.
trap 'exit 1' HUP INT TERM

namespace=$(mktemp -d /mnt/netnsfs/server-XXXXXX)
log=$(mktemp)
echo 1 >"$namespace/links/lo/up"
nsenter --net="$namespace/ns" python3 -u -m http.server 8000 >"$log" 2>&1 &
until ss -N "${namespace##*/}" -Hlnt 'sport = 8000' | grep -q .; do
    kill -0 $! # it has not ended
    sleep 0.1
done
nsenter --net="$namespace/ns" python3 -c '
from urllib.request import urlopen
print(urlopen("http://127.0.0.1:8000").status)'
cat "$log"
