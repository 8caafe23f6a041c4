#!/bin/bash
# Run a command on this machine, made as odd as machines are: odd_machine.sh COMMAND [ARGUMENT...]
#
# What new namespaces inherit is not as usual, named and unnamed ones and docker's bridge are there
# already, one of them has a name that the tests use, /run is on an overlay, /dev/fuse has another
# mode, and the shell has umask 077, a locale without UTF-8, and a TMPDIR with a blank.
#
# It makes namespaces and an interface, and sets sysctls, of the machine itself. All of it is as
# before when the command has ended. A sysctl that is 1 stays 1: others may need it.
set -euo pipefail
if [ "${1-}" != --apart ]; then
    exec unshare --mount --propagation private "$0" --apart "$@"
fi
shift
odd=$(mktemp -d /var/tmp/netnsfs-odd.XXXXXX)
chmod 755 "$odd"
undo=()
clean_up() {
    set +e
    for step in "${undo[@]}"; do eval "$step"; done
    umount --lazy /dev/fuse "$odd/node" /run "$odd/overlay"
    rm -rf "$odd"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# docker sets the first; with the last, new namespaces inherit IPv6 settings too.
for key in ipv4/ip_forward ipv4/conf/default/arp_filter ipv4/conf/default/promote_secondaries \
    ipv6/conf/default/forwarding core/devconf_inherit_init_net; do
    path=/proc/sys/net/$key
    if [ "$(cat "$path" 2>/dev/null)" = 0 ]; then
        echo 1 >"$path"
        undo+=("echo 0 >$path")
    fi
done
if ip link add docker0 type bridge 2>/dev/null; then
    undo+=("ip link del docker0")
    ip addr add 172.31.255.1/24 dev docker0
    ip link set docker0 up
fi

mkdir "$odd/lower" "$odd/upper" "$odd/work" "$odd/overlay" "$odd/node" "$odd/with a blank"
chmod 1777 "$odd/with a blank"
# Not a bind mount of the disk: a test makes the file system below /run read-only.
mount -t overlay overlay -o "lowerdir=$odd/lower,upperdir=$odd/upper,workdir=$odd/work" \
    "$odd/overlay"
mkdir "$odd/overlay/run" "$odd/overlay/tests"
mount --bind "$odd/overlay/run" /run
ip netns add foo
ip netns add "$(printf 'odd\351 name')"
undo+=("ip netns del foo" "ip netns del '$(printf 'odd\351 name')'")
unshare --net sleep infinity &
undo+=("kill $!")

mode=666
[ "$(stat -c %a /dev/fuse)" != 666 ] || mode=600
mount -t tmpfs tmpfs "$odd/node"
mknod -m "$mode" "$odd/node/fuse" c 10 229
mount --bind "$odd/node/fuse" /dev/fuse

echo "on an odd machine: /dev/fuse has mode $mode" >&2
umask 077
export TMPDIR="$odd/with a blank" LC_ALL=C NETNSFS_RUN="$odd/overlay/tests"
unset PYTHONUTF8
status=0
"$@" || status=$?
exit $status
