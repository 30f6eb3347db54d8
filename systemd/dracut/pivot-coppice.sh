#!/bin/sh
# Makes the mounted root this node's: its size, its name, its keys, its network.
if [ -e /run/coppice-wanted ]; then
    # An address that a DHCP client has set goes with its lease, and the client ends here: it is kept for good. The file is what ipconfig of klibc writes, by which
    # the interface is left alone later, too.
    ip -o -4 address show up scope global 2> /dev/null | while read -r _ dev _ address lifetime; do
        ip address change "$address" dev "$dev" valid_lft forever preferred_lft forever
        case "$lifetime" in
            *" dynamic "*) echo "PROTO='dhcp'" ;;
            *) echo "PROTO='none'" ;;
        esac > "/run/net-$dev.conf"
        echo "DEVICE='$dev'" >> "/run/net-$dev.conf"
    done
    coppice boot mounted --root "$NEWROOT" || warn "coppice: going on without"
    # The root's systemd asks anew what it is to do with a unit that is active: to stop one that it does not know, it would end its processes.
    mkdir -p /run/systemd/system
    cp "$(systemctl show --value -p FragmentPath coppice-root.service)" /run/systemd/system/
fi
