package boot

import (
	"context"
	"fmt"

	"coppice/image"
	"coppice/node"
	"coppice/union"
)

// checkRoot refuses, before anything is written to the leaf disk, what the daemon would refuse: a root that is not signed as this machine demands, where a new layer is to stand on it,
// and one that the layer was not made for, where the policy is to refuse it. What it cannot find out is left to the daemon.
func (s *starter) checkRoot(ctx context.Context, leaf string, pin union.Pin) error {
	formatted, err := isStore(leaf)
	if err != nil {
		return err
	}
	if !formatted {
		return s.checkSigned(ctx, pin)
	}
	boots, err := union.ReadBoots(leaf)
	layer := s.params.Leaf.Layer
	if b, ok := boots.Layers[layer]; ok {
		layer = b.Layer
	}
	if err != nil || s.params.Leaf.Policy != PolicyRefuse || s.isKnown(boots.Layers[s.params.Leaf.Layer], pin) {
		return nil
	}
	l, found, err := layerOf(leaf, layer)
	switch {
	case err != nil || l.Pin.Kind == union.PinNone && found:
		return nil
	case !found:
		return s.checkSigned(ctx, pin)
	}
	if diff := l.Pin.Difference(pin); diff != "" {
		return problem(node.CodeOtherRoot, s.otherRootHint(), "layer %s of leaf disk %s was %v: %s has %s", layer, s.params.Leaf, union.ErrOtherRoot, s.params.Roots[0], diff)
	}
	return nil
}

// known is what the record of boots keeps of a root, so that the next boot need not read the store for it: what the layer that is booted from stands on. Other policies take other layers, and
// raw roots are more than a digest.
func (s *starter) known(pin union.Pin) union.Digest {
	if pin.Kind != union.PinImage || s.params.Leaf.Policy != PolicyRefuse {
		return union.Digest{}
	}
	return pin.Digest
}

func (s *starter) isKnown(b union.BootState, pin union.Pin) bool {
	return b.Root != union.Digest{} && b.Root == s.known(pin)
}

func (s *starter) otherRootHint() string {
	return fmt.Sprintf("give the root that the layer was made for, or another layer (%s=%s:LAYER); ,policy=fresh takes a new layer for each root and leaves the old ones, ,policy=keep stays with the layer's root", keyLeaf, s.params.Leaf)
}

// checkSigned refuses a root that has no signature that counts, where new layers need one.
func (s *starter) checkSigned(ctx context.Context, pin union.Pin) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var refs []image.Ref
	for _, text := range s.params.Roots {
		ref, err := image.ParseRef(text)
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	return s.config.Images.CheckSigned(ctx, refs, image.Digest(pin.Digest))
}
