package main

import (
	"context"
	"crypto/rand"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"coppice/internal/resident"
	"coppice/node"
)

type upgradeCmd struct {
	output
	Binary string        `arg:"" placeholder:"BINARY" type:"path" help:"Program of the other version."`
	Watch  time.Duration `placeholder:"DURATION" default:"5s" help:"How long to look whether the new program stays (${default})."`
}

// upgradeReport is what the command prints.
type upgradeReport struct {
	node.Upgrade
	PID int `json:"pid"`
}

// Run hands the devices over, and fails where the former program came back.
func (c *upgradeCmd) Run(env *environment) error {
	if err := checkBinary(c.Binary); err != nil {
		return err
	}
	program, err := resident.Program(c.Binary)
	if err != nil {
		return err
	}
	defer func() { _ = program.Close() }()
	client := env.client()
	begun, err := client.Upgrade(env.ctx, node.UpgradeRequest{ID: rand.Text(), FD: int(program.Fd())})
	if err != nil {
		return err
	}
	r, err := c.await(env.ctx, client, begun)
	if err != nil {
		return err
	}
	return c.print(env.out, r, func(w io.Writer) {
		fmt.Fprintf(w, "the daemon (pid %d) is of version %s now, and was of %s; I/O waited for %.0f ms\n", r.PID, r.To, r.From, r.StallMS)
	})
}

// upgradeLimit is how long the new program may take until it serves.
const upgradeLimit = 3 * time.Minute

// await returns when the new program has served for as long as it is watched.
func (c *upgradeCmd) await(ctx context.Context, client *node.Client, begun node.Upgrade) (upgradeReport, error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeLimit)
	defer cancel()
	const pause = 20 * time.Millisecond
	var done time.Time
	for {
		v, err := client.Version(ctx)
		switch {
		case ctx.Err() != nil:
			return upgradeReport{}, fmt.Errorf("upgrade to %s: wait for the new program: %w", begun.To, ctx.Err())
		case err != nil || v.Upgrade == nil || v.Upgrade.ID != begun.ID:
		case v.Upgrade.Outcome == node.UpgradeWentBack:
			return upgradeReport{}, &node.Error{
				Code: node.CodeFailed, Message: fmt.Sprintf("upgrade to %s: the new program ended; %s serves the devices again", begun.To, v.Version),
				Hint: "the daemon's log tells why",
			}
		case v.Upgrade.Outcome == node.UpgradeDone:
			if done.IsZero() {
				done = time.Now()
			}
			if time.Since(done) >= c.Watch {
				return upgradeReport{*v.Upgrade, v.PID}, nil
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// machines are what programs for the architectures of releases say.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// checkBinary tells early, and plainly, what cannot be run here.
func checkBinary(path string) error {
	bad := func(what string) error {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("upgrade to %s: %s", path, what), Hint: "give the binary of a release for this machine"}
	}
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	f, err := elf.Open(path)
	var format *elf.FormatError
	switch {
	case errors.As(err, &format) || errors.Is(err, io.EOF):
		return bad("it is no program")
	case err != nil:
		return fmt.Errorf("upgrade: %w", err)
	}
	defer func() { _ = f.Close() }()
	if want, ok := machines[runtime.GOARCH]; ok && f.Machine != want {
		return bad(fmt.Sprintf("it is for another machine: %v, not %v", f.Machine, want))
	}
	if st.Mode()&0o111 == 0 {
		return bad("it is not executable")
	}
	return nil
}
