#!/bin/sh
# Says that there is a root, where the kernel's command line or credentials ask for one of coppice, and that it is waited for without end.
modprobe -q qemu_fw_cfg
if coppice boot wants root; then
    rootok=1
    [ -n "$root" ] || root=block:/dev/ublkb0
    mkdir -p /etc/cmdline.d
    getarg rd.retry= > /dev/null || echo rd.retry=100000000 >> /etc/cmdline.d/50-coppice.conf
    if coppice boot wants network; then
        echo rd.neednet=1 >> /etc/cmdline.d/50-coppice.conf
    fi
    : > /run/coppice-wanted
    wait_for_dev -n /dev/ublkb0
fi
