#!/bin/sh
# Has the root's daemon stop its device and close the leaf, once the root is unmounted; where it fails, dracut unmounts more and comes again.
if [ -S /run/coppice-root/coppice.sock ]; then
    coppice --run-dir /run/coppice-root release > /dev/console 2>&1
fi
