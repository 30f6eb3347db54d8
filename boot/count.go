package boot

import (
	"context"
	"fmt"
	"slices"

	"coppice/node"
	"coppice/union"
)

// countBoot counts this boot, and takes another layer where too many have failed. What keeps it from counting keeps nobody from booting.
func (s *starter) countBoot(leaf string, pin union.Pin) {
	if s.params.Leaf.RAM {
		return
	}
	layer, tries := s.params.Leaf.Layer, s.params.Tries
	plan, err := union.CountBoot(leaf, layer, tries, s.known(pin))
	if err != nil {
		s.console.say("this boot is not counted: %v", err)
		return
	}
	s.params.Leaf.Layer, s.from = plan.Layer, plan.From
	if plan.Layer == layer && plan.Number == 0 {
		s.from = ""
	}
	switch {
	case plan.Replaced != "":
		s.console.say("%d BOOTS FROM LAYER %s HAVE FAILED: booting from %s, over %s; layer %s stays as it is, and `coppice boot status` tells how to go back",
			tries, plan.Replaced, plan.Layer, below(plan.From), plan.Replaced)
	case plan.Exhausted:
		s.console.say("%d boots from layer %s have failed, and nothing is below it: trying again", plan.Attempts-1, plan.Layer)
	case plan.Attempts > 1 && tries > 0:
		s.console.say("attempt %d of %d to boot from layer %s", plan.Attempts, tries, plan.Layer)
	case plan.Layer != layer:
		s.console.say("booting from layer %s, in the place of %s, from which boots have failed", plan.Layer, layer)
	}
}

// aboutRoot are the failures that say nothing about the layer: no other layer would make up for them, and policies are not to be got round by trying often.
var aboutRoot = []node.Code{node.CodeOtherRoot, node.CodeBadRoot, node.CodeUntrusted, node.CodeTimeout, node.CodeNoDriver}

// uncountBoot takes a boot back that has failed with err, where the layer told is not to blame for that.
func (s *starter) uncountBoot(leaf, told string, failure error) {
	if s.params.Leaf.RAM || !slices.Contains(aboutRoot, node.CodeOf(failure)) {
		return
	}
	err := union.ChangeBoots(leaf, told, func(b *union.BootState) error {
		b.Attempts, b.Root = max(0, b.Attempts-1), union.Digest{}
		return nil
	})
	if err != nil {
		s.console.say("this boot is counted as one that the layer has failed: %v", err)
	}
}

func below(from string) string {
	if from == "" {
		return "the root"
	}
	return "layer " + from
}

// Status tells what is known about the boots of this machine.
type Status struct {
	Store string `json:"store"`
	// Told is the layer that the machine is told to boot from, Booted the one that it has booted from.
	Told   string `json:"told"`
	Booted string `json:"booted"`
	union.BootState
}

// ReadStatus asks the root's daemon what the machine has booted from, and its leaf store what is known about that.
func ReadStatus(ctx context.Context, g Given) (Status, error) {
	client, err := node.ClientOf(ctx, RunDir)
	if err != nil {
		return Status{}, err
	}
	devices, err := client.List(ctx)
	if err != nil {
		return Status{}, err
	}
	if len(devices) != 1 {
		return Status{}, fmt.Errorf("find the root's device: the root's daemon has %d devices", len(devices))
	}
	d := devices[0]
	st := Status{Store: d.Leaf.Store, Told: d.Leaf.Layer, Booted: d.Leaf.Layer}
	boots, err := union.ReadBoots(st.Store)
	if err != nil {
		return st, err
	}
	if told, ok := boots.Told(st.Booted); ok {
		st.Told = told
	}
	if g.Wanted() {
		st.Told = g.Leaf.Layer
	}
	st.BootState = boots.Layers[st.Told]
	return st, nil
}

// Good says that the machine is up, and returns what was known before.
func Good(ctx context.Context, g Given) (Status, error) {
	st, err := ReadStatus(ctx, g)
	if err == nil {
		_, err = union.BootGood(st.Store, st.Told)
	}
	return st, err
}

// Retry has the next boot be from the layer that the machine is told, in whose place another one was booted from, and returns what was known before.
func Retry(ctx context.Context, g Given) (Status, error) {
	st, err := ReadStatus(ctx, g)
	if err == nil {
		err = union.RetryBoot(st.Store, st.Told)
	}
	return st, err
}
