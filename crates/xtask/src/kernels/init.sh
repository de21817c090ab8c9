#!/bin/busybox sh
# The initramfs's first process: loads the drivers of the disks and hands over to the system on the first one.
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for name in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    [ ! -f /modules/$name.ko ] || insmod /modules/$name.ko
done
waited=0
while [ ! -b /dev/vda ] && [ $waited -lt 100 ]; do
    sleep 0.1
    waited=$((waited + 1))
done
mount -t ext4 /dev/vda /disk || poweroff -f
cp /guest.sh /disk/guest.sh
umount /proc /sys /dev
exec switch_root /disk /bin/sh /guest.sh
