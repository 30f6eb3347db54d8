package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"coppice/idxshare"
	"coppice/image"
	"coppice/node"
)

type indexCmd struct {
	Build   indexBuildCmd   `cmd:"" help:"Index the files of an image, disk image or block device, from its blocks."`
	Share   indexShareCmd   `cmd:"" help:"Keep an index beside its image, sign it, or put it on shared storage."`
	Update  indexUpdateCmd  `cmd:"" help:"Bring the index of a device's files up to date: what its own layer changed."`
	Find    indexFindCmd    `cmd:"" help:"Find files by name, in an index: nothing is mounted and nothing else read."`
	WhoOwns indexOwnersCmd  `cmd:"" name:"who-owns" help:"Tell which files lie at an offset of a disk."`
	Digest  indexDigestCmd  `cmd:"" help:"Show the SHA-256 of a file's content, from an index."`
	Plocate indexPlocateCmd `cmd:"" help:"Write a database for locate, as plocate reads it."`
	Info    indexInfoCmd    `cmd:"" help:"Show what an index is of, where it comes from and who signed it."`
}

// indexOn says which index to ask.
type indexOn struct {
	sourceFlags
	On    string   `placeholder:"NAME|REF|FILE" help:"Device, image or file whose index is asked (the only device that there is)."`
	Trust []string `placeholder:"FILE" type:"existingfile" help:"Public key by which, or by another one given so, the index of an image must be signed."`

	ofRoot string // file with the index of a device's root, instead of the one that is kept beside its image
}

// askedIndex is an index that is open, and where it comes from.
type askedIndex struct {
	*idxshare.Index
	info indexInfo
}

// indexInfo is what is known of an index before anything is asked.
type indexInfo struct {
	From        string            `json:"from"` // device, image, file
	On          string            `json:"on"`
	Image       string            `json:"image,omitempty"` // that a device's index was found beside
	ContentRoot *image.Digest     `json:"content_root,omitempty"`
	SizeBytes   int64             `json:"size_bytes"`
	StoredBytes int64             `json:"stored_bytes,omitempty"`
	Keys        []string          `json:"keys"`    // that it says it is signed with
	Trusted     bool              `json:"trusted"` // by a key that is trusted here
	Of          string            `json:"of"`      // what was indexed: a content root, or what else identifies it
	OfBytes     int64             `json:"of_bytes"`
	Digests     bool              `json:"digests"`
	Volumes     []indexVolumeInfo `json:"volumes"`
}

type indexVolumeInfo struct {
	Volume     int    `json:"volume"`
	Partition  int    `json:"partition"` // 0: the whole disk
	StartBytes int64  `json:"start_bytes"`
	SizeBytes  int64  `json:"size_bytes"`
	Type       string `json:"type"`
	UUID       string `json:"uuid,omitempty"`
	Label      string `json:"label,omitempty"`
	Mapped     bool   `json:"mapped"` // it is known which blocks each file has
}

// indexCache is how much of an image's index is kept while it is asked, in bytes.
const indexCache = 32 << 20

// with opens the index for as long as do takes.
func (f indexOn) with(env *environment, do func(*askedIndex) error) error {
	on, err := f.on(env)
	if err != nil {
		return err
	}
	if _, err := os.Stat(on); err == nil {
		return explainIndex(f.withFile(on, do))
	}
	ref, err := image.ParseRef(on)
	switch {
	case err == nil && ref.Kind != image.KindFile:
		return explainImage(env, ref, explainIndex(f.withAttached(env, ref, do)))
	case err == nil && node.ValidName(on):
		return explainIndex(f.withDevice(env, on, do))
	}
	return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("ask the index of %.200q: no such file", on),
		Hint: "give a device's name, an image (oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG), or a file that coppice index build has written"}
}

// indexView says what to ask: an index, and of a device what its own layer changed, too.
type indexView struct {
	indexOn
	leafIndex
	RootOnly bool `help:"Of a device, its root alone: it is not looked what its own layer changed, and no file system frozen for that."`
}

// with opens the index for as long as do takes.
func (f indexView) with(env *environment, do func(*askedIndex, *idxshare.View) error) error {
	f.ofRoot = f.Index
	return f.indexOn.with(env, func(x *askedIndex) error {
		if x.info.From != "device" || f.RootOnly {
			return do(x, x.View())
		}
		return explainIndex(f.view(env, x, func(view *idxshare.View, t leafTotal) error {
			t.explain(env.err)
			return do(x, view)
		}))
	})
}

// on is what the flag says, or else the only device.
func (f indexOn) on(env *environment) (string, error) {
	if f.On != "" {
		return f.On, nil
	}
	devices, err := env.client().List(env.ctx)
	if err != nil {
		return "", err
	}
	if len(devices) != 1 {
		return "", &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("ask an index: of which of %s?", count(len(devices), "device")), Hint: "give a device, an image or a file: --on NAME|REF|FILE"}
	}
	return devices[0].Name, nil
}

func (f indexOn) noTrust(what string) error {
	if len(f.Trust) == 0 {
		return nil
	}
	return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("ask the index of %s: --trust is for the index of an image", what),
		Hint: "leave it away: of a device's index the daemon's configuration says who is trusted, and a file is not signed"}
}

func (f indexOn) withFile(path string, do func(*askedIndex) error) error {
	if err := f.noTrust(path); err != nil {
		return err
	}
	x, err := idxshare.Open(path)
	if err != nil {
		return err
	}
	a := &askedIndex{x, indexInfo{From: "file", On: path, Keys: []string{}}}
	if st, err := os.Stat(path); err == nil {
		a.info.SizeBytes = st.Size()
	}
	return errors.Join(do(a), x.Close())
}

// withAttached opens the index that is attached to an image.
func (f indexOn) withAttached(env *environment, ref image.Ref, do func(*askedIndex) error) error {
	keys, err := readKeys(f.Trust)
	if err != nil {
		return err
	}
	return f.withImage(env.ctx, ref, func(im *image.Image) error {
		return withImageIndex(env.ctx, im, func(x *image.Index) error {
			info := indexInfo{From: "image", On: ref.String(), StoredBytes: x.StoredBytes(), Keys: []string{}}
			for _, id := range x.Keys() {
				info.Keys = append(info.Keys, fmt.Sprintf("%016X", id))
			}
			if len(keys) > 0 {
				if err := x.SignedBy(keys); err != nil {
					return err
				}
				info.Trusted = true
			}
			x.Cache(indexCache)
			return openAsked(x, x.Statement, info, do)
		})
	})
}

// withImageIndex opens the index of an image for as long as do takes.
func withImageIndex(ctx context.Context, im *image.Image, do func(*image.Index) error) error {
	x, err := image.OpenIndex(ctx, im)
	if errors.Is(err, image.ErrNotAttached) {
		return &node.Error{Code: node.CodeNotFound, Message: err.Error(), Hint: "make one: coppice index build IMAGE --push"}
	}
	if err != nil {
		return err
	}
	return errors.Join(do(x), x.Close())
}

// withDevice asks the daemon for the index of a device's root.
func (f indexOn) withDevice(env *environment, name string, do func(*askedIndex) error) error {
	if err := f.noTrust(name); err != nil {
		return err
	}
	if f.ofRoot != "" {
		return f.withFile(f.ofRoot, func(x *askedIndex) error {
			x.info.From, x.info.On = "device", name
			return do(x)
		})
	}
	d, err := env.client().Index(env.ctx, name)
	if err != nil {
		return f.withBeside(env, name, err, do)
	}
	return openAsked(env.client().IndexReader(env.ctx, d), d.Statement, indexInfo{From: "device", On: name, Image: d.Image, Keys: d.Keys, Trusted: d.Trusted}, do)
}

// besideRaw is what is added to the path of a raw disk for the file with the index of its files, on shared storage as anywhere.
const besideRaw = ".coppice-index"

// withBeside opens the index in the file beside a raw root, to which none can be attached. Of another root, and where there is none, the daemon's answer stands.
func (f indexOn) withBeside(env *environment, name string, answer error, do func(*askedIndex) error) error {
	d, err := env.client().Inspect(env.ctx, name)
	if err != nil || d.Root.Path == "" || d.Root.Verified || !filepath.IsAbs(d.Root.Path) {
		return answer
	}
	path := d.Root.Path + besideRaw
	build := fmt.Sprintf("coppice index build %s --to %s", d.Root.Path, path)
	if _, err := os.Stat(path); err != nil {
		return &node.Error{Code: node.CodeNotFound, Message: fmt.Sprintf("the index of the root of device %s: %v", name, err), Hint: "make one: " + build}
	}
	return f.withFile(path, func(x *askedIndex) error {
		if h := x.Header(); h.Source != rawPrefix+d.Root.Content || h.Size != d.Root.SizeBytes {
			return &node.Error{Code: node.CodeOtherRoot, Message: fmt.Sprintf("%s is the index of %.100q, the root of device %s is %s%s", path, h.Source, name, rawPrefix, d.Root.Content), Hint: "build it again: " + build}
		}
		x.info.From, x.info.On = "device", name
		return do(x)
	})
}

// openAsked opens what was verified against a statement, and compares what it says of itself.
func openAsked(r io.ReaderAt, s image.IndexStatement, info indexInfo, do func(*askedIndex) error) error {
	x, err := idxshare.OpenReaderAt(r, s.SizeBytes)
	if err != nil {
		return err
	}
	info.ContentRoot, info.SizeBytes = &s.Index, s.SizeBytes
	if h := x.Header(); h.Source != s.Image.String() || h.Size != s.ImageBytes || h.Delta {
		return errors.Join(fmt.Errorf("index of %s: says it is of %.100q: %w", info.On, h.Source, idxshare.ErrCorrupt), x.Close())
	}
	return errors.Join(do(&askedIndex{x, info}), x.Close())
}

// explainIndex says what to do about an error with an index.
func explainIndex(err error) error {
	if err == nil || errors.Is(err, errSilent) {
		return err
	}
	e := node.Explain(err)
	switch {
	case e.Hint != "":
	case errors.Is(err, idxshare.ErrVersion):
		e.Hint = "use a later coppice, or build the index again"
	case errors.Is(err, idxshare.ErrCorrupt), errors.Is(err, image.ErrCorrupt):
		e.Hint = "build the index again: coppice index build; the image does not need it"
	case errors.Is(err, idxshare.ErrBadQuery):
		e.Code, e.Hint = node.CodeBadRequest, "coppice index find --help tells what patterns are taken"
	}
	return e
}

type indexInfoCmd struct {
	output
	indexOn
}

// Run shows what is known of the index.
func (c *indexInfoCmd) Run(env *environment) error {
	return c.with(env, func(x *askedIndex) error {
		info, h := x.info, x.Header()
		info.Of, info.OfBytes, info.Digests, info.Volumes = h.Source, h.Size, h.Digests, []indexVolumeInfo{}
		for _, v := range x.Volumes() {
			info.Volumes = append(info.Volumes, indexVolumeInfo{v.ID, v.Partition, v.Start, v.Length, v.Type, v.UUID, v.Label, v.Mapped})
		}
		return c.print(env.out, info, func(w io.Writer) { info.write(w) })
	})
}

func (i *indexInfo) write(w io.Writer) {
	var r rows
	r.add("index", "of %s %s", i.From, i.On)
	if i.Image != "" {
		r.add("beside", "%s", i.Image)
	}
	r.add("of", "%s, %s", i.Of, showBytes(i.OfBytes))
	if i.ContentRoot != nil {
		r.add("content root", "%s", i.ContentRoot)
	}
	stored := ""
	if i.StoredBytes > 0 {
		stored = fmt.Sprintf(", %s stored", showBytes(i.StoredBytes))
	}
	r.add("size", "%s%s", showBytes(i.SizeBytes), stored)
	r.add("signed", "%s", showKeys(i.From, i.Keys, i.Trusted))
	r.add("digests", "%s", map[bool]string{true: "of all regular files", false: "none"}[i.Digests])
	for _, v := range i.Volumes {
		r.add("volume", "%s", v)
	}
	r.write(w)
}

// showKeys says who signed an index.
func showKeys(from string, keys []string, trusted bool) string {
	switch {
	case from == "file":
		return "a file is not"
	case trusted:
		return "by a key that is trusted"
	case len(keys) == 0:
		return "no"
	}
	return fmt.Sprintf("it says with key %v", keys)
}

// String describes a volume.
func (v indexVolumeInfo) String() string {
	where := "the whole disk"
	if v.Partition > 0 {
		where = fmt.Sprintf("partition %d", v.Partition)
	}
	s := fmt.Sprintf("%s: %s, %s", where, v.Type, showBytes(v.SizeBytes))
	if v.Label != "" {
		s += ", label " + showName(v.Label)
	}
	if !v.Mapped {
		s += ", without the blocks of its files"
	}
	return s
}
