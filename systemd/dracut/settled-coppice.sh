#!/bin/sh
# Makes the root device, once: its unit says on the console what is wrong, and how to go on.
if [ -e /run/coppice-wanted ] && [ ! -e /run/coppice-begun ]; then
    : > /run/coppice-begun
    systemctl --no-block start coppice-root.service
fi
