package main

import (
	"fmt"
	"os"
	"slices"

	"coppice/image"
	"coppice/node"
)

// leases asks the daemon who needs images of a place. Where it cannot be asked, that is an error, unless forced.
func (e *environment) leases(place image.Ref, force bool) ([]image.Lease, error) {
	client := e.client()
	client.Wait = 0
	all, err := client.Leases(e.ctx)
	switch {
	case node.CodeOf(err) == node.CodeNoDaemon:
		return nil, nil
	case err != nil && force:
		e.warn("devices of this machine are not known: %v", err)
		return nil, nil
	case err != nil:
		explained := node.Explain(err)
		explained.Hint += "; or go on without knowing: --force"
		return nil, explained
	}
	return slices.DeleteFunc(all, func(l image.Lease) bool { return !concerns(l, place) }), nil
}

// concerns reports whether a lease may be of an image in a place: the same directory may be reached in several ways.
func concerns(l image.Lease, place image.Ref) bool {
	ref, err := image.ParseRef(l.Ref)
	if err != nil { // a layer, whose root may be anywhere
		return true
	}
	switch ref.Kind {
	case image.KindFile:
		return false
	case image.KindLayout:
		a, errA := os.Stat(ref.Place)
		b, errB := os.Stat(place.Place)
		return place.Kind == image.KindLayout && (errA != nil || errB != nil || os.SameFile(a, b))
	case image.KindRegistry:
		return place.Kind == image.KindRegistry
	}
	return place.Kind == image.KindLayout
}

// warn tells what is not as it should be, and does not end the command.
func (e *environment) warn(format string, args ...any) {
	fmt.Fprintf(e.err, "coppice: warning: "+format+"\n", args...)
}

// warnLeases tells of leases that do not count.
func (e *environment) warnLeases(bad []error) {
	for _, err := range bad {
		e.warn("%v", err)
	}
}
