package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"coppice/image"
	"coppice/node"
)

type imageGCCmd struct {
	output
	Place     imagePlace    `arg:"" help:"oci:DIR."`
	Repack    int           `placeholder:"PERCENT" help:"Store again what is in use of packs of which less than PERCENT is."`
	Grace     time.Duration `default:"168h" placeholder:"DURATION" help:"How long versions that are stored again are kept as they were (${default})."`
	Abandoned time.Duration `default:"168h" placeholder:"DURATION" help:"Age at which what a build left is removed (${default})."`
	Force     bool          `help:"Also where the devices of this machine cannot be asked for."`
}

// Run removes what nothing needs.
func (c *imageGCCmd) Run(env *environment) error {
	if c.Place.Kind != image.KindLayout {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("collect garbage in %s: only a directory is looked after", c.Place),
			Hint: "a registry has means of its own: docker-registry garbage-collect"}
	}
	if c.Repack < 0 || c.Repack > 100 || c.Grace < 0 || c.Abandoned < 0 {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("collect garbage in %s: --repack %d: a part of 100; times are not negative", c.Place, c.Repack), Hint: "give --repack 75, say"}
	}
	leases, err := env.leases(c.Place.Ref, c.Force)
	if err != nil {
		return err
	}
	l, err := image.OpenLayout(c.Place.Place)
	if err != nil {
		return explainImage(env, c.Place.Ref, err)
	}
	if c.Abandoned == 0 { // which means the default to GC
		c.Abandoned = 1
	}
	bar := newProgress(env.err, "repack "+c.Place.String())
	report, err := l.GC(env.ctx, image.GCOptions{Leases: leases, Abandoned: c.Abandoned, RepackBelow: c.Repack, Grace: c.Grace, Progress: bar.show})
	bar.end()
	env.warnLeases(report.Bad)
	if err = errors.Join(err, l.Close()); err != nil {
		return explainImage(env, c.Place.Ref, err)
	}
	for _, v := range report.Repacked {
		for _, what := range v.Damaged {
			env.warn("damaged, and not kept with %s: %s", v.Names[0], what)
		}
	}
	return c.print(env.out, report, func(w io.Writer) { c.write(w, report) })
}

func (c *imageGCCmd) write(w io.Writer, r image.GCReport) {
	for _, v := range r.Repacked {
		fmt.Fprintf(w, "%s: stored again, packs of %s instead of %s\n", strings.Join(v.Names, ", "), showBytes(v.AfterBytes), showBytes(v.BeforeBytes))
	}
	for _, k := range r.Kept {
		why := "until " + showTime(k.Until)
		if len(k.By) > 0 {
			why = "for " + k.By[0].String()
			if n := len(k.By) - 1; n > 0 {
				why += fmt.Sprintf(" and %d more", n)
			}
		}
		fmt.Fprintf(w, "kept without a name: %s, %s\n", k.Manifest.String()[:19], why)
	}
	fmt.Fprintf(w, "%s: %s freed\n", c.Place, showBytes(r.FreedBytes))
}
