package main

import (
	"fmt"
	"io"

	"coppice/node"
)

type setCmd struct {
	output
	Name  string `arg:"" help:"Name of the device."`
	Quota *quota `required:"" placeholder:"SIZE|none" help:"Most data that the device's layer may hold. Less than it holds already lets it overwrite and discard only."`
}

// quota is a size, or none.
type quota int64

// UnmarshalText accepts sizes and the word none.
func (q *quota) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*q = 0
		return nil
	}
	n, err := node.ParseBytes(string(text))
	if err == nil && n == 0 {
		err = fmt.Errorf("quota %q: write none for no quota", text)
	}
	*q = quota(n)
	return err
}

// Run changes the device.
func (c *setCmd) Run(env *environment) error {
	bytes := int64(*c.Quota)
	rep, err := env.client().Set(env.ctx, c.Name, node.SetRequest{QuotaBytes: &bytes})
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		if rep.Layer.QuotaBytes == 0 {
			fmt.Fprintf(w, "%s: no quota; layer %s holds %s\n", rep.Device, rep.Layer.Name, showBytes(rep.Layer.DataBytes))
		} else {
			fmt.Fprintf(w, "%s: quota %s, of which layer %s holds %s\n", rep.Device, showBytes(rep.Layer.QuotaBytes), rep.Layer.Name, showBytes(rep.Layer.DataBytes))
		}
		if rep.Warning != "" {
			fmt.Fprintf(w, "  warning: %s\n", rep.Warning)
		}
	})
}
