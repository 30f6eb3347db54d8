package main

import (
	"fmt"
	"io"
	"strings"

	"coppice/boot"
)

type bootGoodCmd struct{}

// Run takes the attempts to boot back. On a machine whose root is on no device of ours there are none.
func (bootGoodCmd) Run(env *environment) error {
	given, err := boot.Read("/")
	if err != nil {
		return badParameters(err)
	}
	st, err := boot.Good(env.ctx, given)
	if err != nil {
		return fmt.Errorf("say that this boot is good: %w", err)
	}
	if st.Attempts > 0 {
		fmt.Fprintf(env.out, "attempt %d to boot from layer %s was good\n", st.Attempts, st.Booted)
	}
	return nil
}

type bootRetryCmd struct{}

// Run goes back to the layer that the machine is told.
func (bootRetryCmd) Run(env *environment) error {
	given, err := boot.Read("/")
	if err != nil {
		return badParameters(err)
	}
	st, err := boot.Retry(env.ctx, given)
	if err != nil {
		return fmt.Errorf("go back to the layer that this machine was told to boot from: %w", err)
	}
	if st.Booted == st.Told {
		fmt.Fprintf(env.out, "the next boot is from layer %s, as this one was\n", st.Told)
		return nil
	}
	fmt.Fprintf(env.out, "the next boot is from layer %s again; layer %s stays as it is\n", st.Told, st.Booted)
	return nil
}

type bootStatusCmd struct{ output }

// Run shows what is known about boots.
func (c *bootStatusCmd) Run(env *environment) error {
	given, err := boot.Read("/")
	if err != nil {
		return badParameters(err)
	}
	st, err := boot.ReadStatus(env.ctx, given)
	if err != nil {
		return fmt.Errorf("show boots: %w", err)
	}
	return c.print(env.out, st, func(w io.Writer) { writeBootStatus(w, st) })
}

func writeBootStatus(w io.Writer, st boot.Status) {
	var r rows
	r.add("booted from", "layer %s of %s", st.Booted, st.Store)
	switch {
	case st.Layer == "":
		r.add("boots", "not counted")
	case st.Attempts == 0:
		r.add("boots", "the last one was good")
	default:
		r.add("boots", "%d since the last good one", st.Attempts)
	}
	if len(st.Failed) > 0 {
		r.add("failed", "%s; kept. Mend what ails it, and go back to %s by coppice boot retry, to another by coppice.leaf=DEVICE:LAYER", strings.Join(st.Failed, ", "), st.Told)
	}
	r.write(w)
}
