package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"coppice/image"
	"coppice/node"
)

type createCmd struct {
	output
	Name      string    `arg:"" help:"Name of the device: letters, digits, '.', '_' and '-', at most 63."`
	Root      []string  `sep:"none" placeholder:"REF" help:"Root: path of a raw disk image or of a block device, or an image. It is only read. Given several times for replicas of one image; left out for a layer that is complete (see detach)."`
	Leaf      string    `required:"" placeholder:"STORE[:LAYER]" help:"Leaf store that takes what is written, and the layer in it (default: named as the device). The layer is made where there is none; an existing one is continued."`
	From      string    `placeholder:"LAYER" help:"Sealed layer of the same store that a new layer stands on (default: the root alone)."`
	Size      size      `placeholder:"SIZE" help:"Size of the device, at least that of the root; the rest reads zeros (default: the root's)."`
	Quota     quota     `placeholder:"SIZE" help:"Most data that a layer made by this may hold (default: no bound but the store)."`
	Queues    int       `placeholder:"N" help:"Hardware queues (default: 1, or as the daemon is configured)."`
	Depth     int       `placeholder:"N" help:"Requests in flight per queue (default: 128, or as the daemon is configured)."`
	BlockSize blockSize `placeholder:"512|4096" help:"Logical block size in bytes (default: 512, or as the daemon is configured)."`
	ReadOnly  bool      `help:"Make a device that cannot be written."`
	Hydrate   bool      `help:"Copy the image to this machine in the background, behind what the device reads."`
	Save      bool      `help:"Declare the device in a file, so that it is there again after each boot (default directory: ${devices})."`
	ID        int       `name:"id" default:"-1" placeholder:"N" help:"Number N of /dev/ublkbN (default: the lowest free one)."`
}

// blockSize is 512 or 4096 bytes; 0 leaves it to the daemon.
type blockSize int

// UnmarshalText accepts the two sizes, also as 4K.
func (b *blockSize) UnmarshalText(text []byte) error {
	n, err := node.ParseBytes(string(text))
	if err != nil || n != 512 && n != 4096 {
		return fmt.Errorf("block size %q is neither 512 nor 4096", text)
	}
	*b = blockSize(n)
	return nil
}

// Run makes the device.
func (c *createCmd) Run(env *environment) error {
	req, err := c.request()
	if err != nil {
		return err
	}
	d, err := env.client().Create(env.ctx, req)
	if err != nil {
		return err
	}
	return c.print(env.out, d, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s, %s, ready in %.1f ms\n", d.Name, d.Path, showBytes(d.SizeBytes), d.CreateMS)
		if c.Save {
			fmt.Fprintf(w, "  declared in %s: it is there again after each boot\n", d.Declared)
		}
		for _, r := range d.Root.Replicas {
			if r.State != image.StateReady && r.State != image.StateSlow {
				fmt.Fprintf(w, "  warning: replica %s is %s, and joins when it can: %s\n", r.Ref, r.State, r.Error)
			}
		}
	})
}

func (c *createCmd) request() (node.CreateRequest, error) {
	store, layer := splitLeaf(c.Leaf)
	var roots []string
	for _, text := range c.Root {
		root, err := absoluteRoot(text)
		if err != nil {
			return node.CreateRequest{}, fmt.Errorf("create %s: %w", c.Name, err)
		}
		roots = append(roots, root)
	}
	store, err := filepath.Abs(store)
	if err != nil {
		return node.CreateRequest{}, fmt.Errorf("create %s: %w", c.Name, err)
	}
	return node.CreateRequest{
		Name: c.Name, Roots: roots, Hydrate: c.Hydrate, Store: store, Layer: layer, From: c.From, SizeBytes: int64(c.Size),
		Queues: c.Queues, Depth: c.Depth, BlockSize: int(c.BlockSize), ReadOnly: c.ReadOnly, ID: c.ID, Save: c.Save, QuotaBytes: int64(c.Quota),
	}, nil
}

// absoluteRoot makes a reference of a root mean the same to the daemon.
func absoluteRoot(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	ref, err := image.ParseRef(text)
	if err == nil {
		ref, err = ref.Abs()
	}
	return ref.String(), err
}

// splitLeaf takes STORE[:LAYER] apart. Paths may have colons of their own (those of
// /dev/disk/by-path do): what exists as a path is one.
func splitLeaf(leaf string) (store, layer string) {
	if _, err := os.Stat(leaf); err == nil {
		return leaf, ""
	}
	i := strings.LastIndexByte(leaf, ':')
	if i <= 0 || strings.ContainsRune(leaf[i:], '/') {
		return leaf, ""
	}
	return leaf[:i], leaf[i+1:]
}
