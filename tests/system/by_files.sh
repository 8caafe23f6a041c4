#!/bin/sh
# Everything that ip-netns(8) lists, by file operations alone. Used by test_by_files.py.
set -eu
M=${1:-/mnt/netnsfs}

mkdir "$M/blue"                                 # ip netns add blue
ls "$M"                                         # ip netns list

nsenter --net="$M/blue/ns" sleep 60 &           # ip netns exec blue sleep 60
inside=$!
trap 'kill $inside' EXIT
until grep -qx "$inside" "$M/blue/pids"; do sleep 0.05; done
cat "$M/blue/pids"                              # ip netns pids blue
readlink "$M/.netnsfs/pid/$inside"              # ip netns identify $inside

ln -s "/proc/$inside/ns/net" "$M/web"           # ip netns attach web $inside
cmp "$M/web/id" "$M/blue/id"

echo 4242 >"$M/blue/nsid"                       # ip netns set blue 4242
grep -H . "$M"/*/nsid                           # ip netns list-id

unshare --net --mount sleep 60 &                # a namespace without a name
unnamed=$!
trap 'kill $inside $unnamed' EXIT
until link=$(readlink "$M/.netnsfs/pid/$unnamed") &&
    [ "$link" != "$(readlink "$M/.netnsfs/pid/self")" ]; do sleep 0.05; done
mv "$M/.netnsfs/pid/$link" "$M/found"           # no ip netns command does this
cat "$M/found/pids"

mv "$M/blue" "$M/green"                         # nor this
rmdir "$M/green"                                # ip netns delete green
rmdir "$M"/*                                    # ip -all netns delete
ls "$M"
