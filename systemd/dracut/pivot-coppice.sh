#!/bin/sh
# Makes the mounted root this node's: its size, its name, its keys, its network.
if [ -e /run/coppice-wanted ]; then
    coppice boot mounted --root "$NEWROOT" || warn "coppice: going on without"
fi
