#!/bin/busybox sh
# PID 1 of a bench guest: loads what its rival needs, mounts the root as BENCH_ROOT says (the
# kernel hands it down from its command line), and goes there with the workload.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
while read -r module; do $b insmod "/modules/$module"; done < /modules/order
$b mkdir /root /lower /memory
case $BENCH_ROOT in
virtiofs) $b mount -t virtiofs root /root ;;
9p) $b mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=1048576 root /root ;;
ext4) $b mount -t ext4 /dev/vda /root ;;
erofs)
    $b mount -t erofs -o ro /dev/vda /lower
    $b mount -t tmpfs tmpfs /memory
    $b mkdir /memory/upper /memory/work
    $b mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /root
    ;;
esac
$b mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /root/run
$b cp /workload /root/run/workload
for directory in proc sys dev; do $b mount --move /$directory /root/$directory; done
if [ "$BENCH_START" = command ]; then
    exec $b switch_root -c /dev/console /root /bin/sh /run/workload
fi
# systemd runs the workload once everything of multi-user.target is up.
units=/root/run/systemd/system
$b mkdir -p $units/multi-user.target.wants
$b cp /workload.service $units/workload.service
$b ln -s ../workload.service $units/multi-user.target.wants/workload.service
exec $b switch_root -c /dev/console /root /sbin/init
