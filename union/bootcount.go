package union

import (
	"errors"
	"fmt"
	"slices"
)

// BootPlan is what a machine is to boot from.
type BootPlan struct {
	BootState
	// Replaced is the layer whose place Layer takes from this boot on, as too many boots from it have failed; "" mostly.
	Replaced string
	// Exhausted tells that too many boots from Layer have failed, and that there is nothing before it.
	Exhausted bool
}

// CountBoot counts an attempt to boot from a layer of the store at path, which nobody has open for writing, and returns what the
// machine is to boot from. When that many tries in a row have not been good, see [BootGood], the place of the layer is taken by a
// fresh one, over the sealed layer that it stands on or, where there is none, over its root; if that fails as well, over what is below that. The layers that failed stay.
// root is kept as [BootState.Root].
// tries of 0 means that no layer is ever replaced, but attempts are counted. A layer that does not exist yet cannot be replaced.
func CountBoot(path, layer string, tries int, root Digest) (BootPlan, error) {
	var plan BootPlan
	err := ChangeBoots(path, layer, func(s *BootState) error {
		if tries > 0 && s.Attempts >= tries {
			layers, err := Layers(path) // replays the log, which other boots need not wait for
			if err != nil {
				return err
			}
			plan.Replaced, plan.Exhausted = s.replace(layer, layers)
		}
		s.Attempts++
		s.Root = root
		plan.BootState = *s
		return nil
	})
	if err != nil {
		return BootPlan{}, fmt.Errorf("count boot: %w", err)
	}
	return plan, nil
}

// Layers returns what the store at path, which nobody has open for writing, says of its layers, by name. The store is not changed.
func Layers(path string) (map[string]LayerInfo, error) {
	s, err := OpenStore(path, StoreOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	layers := make(map[string]LayerInfo)
	for _, l := range s.Info().Layers {
		layers[l.Name] = l
	}
	return layers, s.Close()
}

// replace gives the place of layer to a fresh one, and returns which one had it, or that there is nothing to replace it by.
func (s *BootState) replace(layer string, layers map[string]LayerInfo) (replaced string, exhausted bool) {
	failed, ok := layers[s.Layer]
	if !ok {
		return "", true
	}
	from := failed.Parent
	if s.Number > 0 && from == s.From { // a fresh one over that has failed, too
		if from == "" {
			return "", true
		}
		from = layers[from].Parent
	}
	replaced = s.Layer
	for taken := true; taken; _, taken = layers[s.Layer] {
		s.Number++
		suffix := fmt.Sprintf(".boot%d", s.Number)
		s.Layer = layer[:min(len(layer), MaxLayerName-len(suffix))] + suffix
	}
	s.From, s.Attempts = from, 0
	s.Failed = append(s.Failed, replaced)
	return replaced, false
}

// errNotBooted keeps a record as it is.
var errNotBooted = errors.New("nothing was booted from it")

// BootGood says that the machine which was told to boot from a layer of the store at path, or has booted from it in the place of another one, is up. It reports whether
// that boot had been counted. The store may be open elsewhere.
func BootGood(path, layer string) (counted bool, err error) {
	r, err := ReadBoots(path)
	if err != nil {
		return false, err
	}
	told, ok := r.Told(layer)
	if !ok {
		return false, nil
	}
	err = ChangeBoots(path, told, func(s *BootState) error {
		if s.Attempts == 0 {
			return errNotBooted
		}
		s.Attempts = 0
		return nil
	})
	if errors.Is(err, errNotBooted) {
		return false, nil
	}
	return err == nil, err
}

// RetryBoot has the machine that was told to boot from a layer of the store at path boot from that again, whatever has taken its place. The layers that did stay. The store may
// be open elsewhere.
func RetryBoot(path, told string) error {
	return ChangeBoots(path, told, func(s *BootState) error {
		failed := slices.DeleteFunc(s.Failed, func(name string) bool { return name == told })
		if s.Layer != told {
			failed = append(failed, s.Layer)
		}
		*s = BootState{Layer: told, Failed: failed}
		return nil
	})
}
