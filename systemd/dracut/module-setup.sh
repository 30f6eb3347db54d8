#!/bin/bash
# dracut.modules(7): what a machine needs in its initramfs to boot from a root device of coppice.

check() {
    require_binaries coppice || return 1
    return 0
}

depends() {
    echo systemd
    # Most roots are behind a network; the module is in a package of its own (dracut-network).
    if [[ -e $dracutbasedir/modules.d/40network/module-setup.sh ]]; then
        echo network
    fi
    return 0
}

installkernel() {
    # The driver, what the leaf may be on, and credentials of QEMU, whatever machine this is made on.
    hostonly='' instmods ublk_drv brd crc32c crc32c_intel libcrc32c qemu_fw_cfg
    hostonly='' instmods virtio_pci virtio_blk virtio_scsi virtio_net nvme ahci sd_mod ext4 xfs
}

install() {
    inst_binary coppice /usr/bin/coppice
    inst_multiple -o modprobe e2fsck fsck fsck.ext4 fsck.xfs
    inst_hook cmdline 30 "$moddir/parse-coppice.sh"
    inst_hook initqueue/settled 50 "$moddir/settled-coppice.sh"
    inst_hook pre-pivot 50 "$moddir/pivot-coppice.sh"
    inst_simple "$moddir/coppice-root.service" "$systemdsystemunitdir/coppice-root.service"
    # The daemon's configuration, with the certificates and keys beside it; lists of devices are for the system that is booted.
    if [[ -d /etc/coppice ]]; then
        while read -r file; do
            inst_simple "$file"
        done < <(find -L /etc/coppice -type f ! -path '/etc/coppice/devices.d/*')
    fi
    inst_multiple -o /etc/ssl/certs/ca-certificates.crt /etc/hosts
    dracut_need_initqueue
}
