package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"coppice/idxshare"
	"coppice/image"
	"coppice/node"
	"coppice/union"
)

// leafIndex says how it is found out what a device's layer holds that its root does not.
type leafIndex struct {
	consistency
	Index string `placeholder:"FILE" type:"existingfile" help:"Index of the files of the device's root (the one that is kept beside its image)."`
	Cache string `default:"/var/cache/coppice/index" placeholder:"DIR" help:"Where to keep what is known, so that the next time only what changed since is read (/var/cache/coppice/index)."`

	within func(*idxshare.View, node.LayerContent) error // called while what the device holds can be read; nil: not
}

// leafTotal is what it took to find that out.
type leafTotal struct {
	PauseMS    float64              `json:"pause_ms"` // in which writers waited
	Frozen     []string             `json:"frozen"`
	SyncedOnly []string             `json:"synced_only"`
	Read       idxshare.DeltaReport `json:"read"`
}

// explain tells of file systems of which not only what changed was read, and of what is not known.
func (t leafTotal) explain(w io.Writer) {
	if t.Read.Table != "" {
		fmt.Fprintf(w, "the partition table cannot be read, so that file systems are looked for where the root has them: %s\n", t.Read.Table)
	}
	for _, l := range t.Read.LeftOut {
		fmt.Fprintf(w, "not indexed: partition %d, %s: %s\n", l.Partition, showBytes(l.Length), l.Why)
	}
	for _, v := range t.Read.Volumes {
		if v.Why != "" {
			fmt.Fprintf(w, "file system %d (%s): %s: %s\n", v.Volume, v.Type, v.How, v.Why)
		}
	}
}

// view calls do with what a device holds as it is at one moment, over the index of its root. What is read of the device is what changed since the last time.
func (c leafIndex) view(env *environment, x *askedIndex, do func(*idxshare.View, leafTotal) error) error {
	kept, total, err := c.update(env, x)
	if err != nil {
		return err
	}
	return kept.view(env.ctx, x.Index, func(view *idxshare.View) error { return do(view, total) })
}

// update brings what is kept of a device up to date, with what it holds at one moment.
func (c leafIndex) update(env *environment, x *askedIndex) (kept keptDelta, total leafTotal, err error) {
	client, name, base := env.client(), x.info.On, x.Index
	device, err := client.Inspect(env.ctx, name)
	if err != nil {
		return kept, total, err
	}
	leaf, err := layerOf(device)
	if err != nil {
		return kept, total, err
	}
	if err := os.MkdirAll(c.Cache, 0o700); err != nil {
		return kept, total, &node.Error{Code: node.CodeFailed, Message: fmt.Sprintf("index what changed on %s: %v", name, err), Hint: "run it as root, or give a directory to keep the index in: --cache DIR"}
	}
	kept = newKeptDelta(c.Cache, leaf.UUID, base.Header().Source)
	var report idxshare.DeltaReport
	p, err := c.readCut(env, client, name, func(content node.LayerContent) error {
		if err := sameRoot(content.Pin(), base.Header()); err != nil {
			return fmt.Errorf("index what changed on %s: %w", name, err)
		}
		if report, err = kept.update(env.ctx, base, content); err != nil || c.within == nil {
			return err
		}
		return kept.view(env.ctx, base, func(view *idxshare.View) error { return c.within(view, content) })
	})
	if err != nil {
		return kept, total, err
	}
	if err := pruneKept(c.Cache, kept.delta); err != nil {
		fmt.Fprintf(env.err, "coppice: %v\n", err)
	}
	return kept, leafTotal{PauseMS: p.pauseMS, Frozen: p.frozen, SyncedOnly: p.synced, Read: report}, nil
}

// view calls do with what is kept, over the base.
func (k keptDelta) view(ctx context.Context, base *idxshare.Index, do func(*idxshare.View) error) error {
	delta, err := idxshare.Open(k.delta)
	if err != nil {
		return err
	}
	defer delta.Close() //nolint:errcheck // it was only read
	view, err := idxshare.NewView(ctx, base, delta)
	if err != nil {
		return err
	}
	return do(view)
}

// layerOf returns the layer that a device writes to.
func layerOf(d node.Device) (union.LayerInfo, error) {
	if d.Leaf.Info != nil {
		for _, l := range d.Leaf.Info.Layers {
			if l.Name == d.Leaf.Layer {
				return l, nil
			}
		}
	}
	return union.LayerInfo{}, &node.Error{Code: node.CodeBusy, Message: fmt.Sprintf("index what changed on %s: the device is %s", d.Name, d.State), Hint: "`coppice list` shows it"}
}

// rawSource is what an index of a raw disk says that it is of: the digest by which a layer knows the disk again, of its first and last MiB and of samples.
func rawSource(pin union.Pin) string { return fmt.Sprintf("%s%x", rawPrefix, pin.Digest) }

const rawPrefix = "raw:"

// sameRoot refuses an index of something else than what the device stands on. Of an index that coppice index build has not made of the disk itself, only the size can be compared.
func sameRoot(pin union.Pin, h idxshare.Header) error {
	wrong := func(what string) error {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("the index is of %s, the device stands on %s", h.Source, what), Hint: "give the index of the device's root"}
	}
	switch {
	case pin.Kind == union.PinNone:
		return &node.Error{Code: node.CodeBadRequest, Message: "the device stands on no root: nothing is known that it could differ from", Hint: "compare with an index that was made of the device before"}
	case pin.Kind == union.PinImage && image.Digest(pin.Digest).String() != h.Source:
		return wrong(image.Digest(pin.Digest).String())
	case pin.Kind == union.PinRaw && strings.HasPrefix(h.Source, rawPrefix) && rawSource(pin) != h.Source:
		return wrong(fmt.Sprintf("a disk with other content, %s", rawSource(pin)))
	case pin.SizeBytes != h.Size:
		return wrong(fmt.Sprintf("a root of %d bytes, not %d", pin.SizeBytes, h.Size))
	}
	return nil
}

// readCut calls do with what the device holds at one moment: its file systems are frozen for it, and go on before do is called.
func (c leafIndex) readCut(env *environment, client *node.Client, name string, do func(node.LayerContent) error) (pause, error) {
	ctx, cancel := context.WithCancel(env.ctx)
	defer cancel()
	thawed, ended := make(chan struct{}), make(chan error, 1)
	var sealMS float64
	p, err := c.hold(env, client, name, sealer{
		prepare: func(ctx context.Context) (node.PreparedFreeze, error) {
			return client.PrepareContent(ctx, name, node.ReadRequest{Force: c.Force})
		},
		seal: func(limit context.Context, token string) error {
			sealed := make(chan float64, 1)
			go func() {
				ended <- client.WithDeviceContent(ctx, name, token, func(content node.LayerContent, o node.OpenedCut) error {
					sealed <- o.SealMS
					select {
					case <-thawed:
						return do(content)
					case <-ctx.Done():
						return ctx.Err()
					}
				})
			}()
			select {
			case sealMS = <-sealed:
				return nil
			case err := <-ended:
				ended <- err
				return cmp.Or(err, errors.New("the device was not sealed"))
			case <-limit.Done():
				return fmt.Errorf("index what changed on %s: seal: %w", name, limit.Err())
			}
		},
		cancel: func(ctx context.Context, token string) error { return client.CancelContent(ctx, name, token) },
	})
	if err != nil {
		return p, err // and the seal is taken back
	}
	close(thawed)
	if c.CrashConsistent {
		p.pauseMS = sealMS
	}
	return p, <-ended
}

// keptDelta is what is kept of a leaf from one time to the next: the index of what changed, and what tells which blocks it was made of. Both are written anew each
// time; without them, or with those of different times, everything that is not the root's is read again.
type keptDelta struct{ delta, prints string }

// Names of files that are kept.
const (
	keptDeltaName  = ".delta"
	keptPrintsName = ".prints"
	partialPrints  = ".prints-" // what they are called while they are written
)

func newKeptDelta(dir, leaf, source string) keptDelta {
	sum := sha256.Sum256([]byte(source))
	name := filepath.Join(dir, leaf+"-"+hex.EncodeToString(sum[:8]))
	return keptDelta{name + keptDeltaName, name + keptPrintsName}
}

// update makes the index of what changed of a content.
func (k keptDelta) update(ctx context.Context, base *idxshare.Index, content node.LayerContent) (report idxshare.DeltaReport, err error) {
	previous, before, done := k.open(base)
	defer done()
	partial, err := os.CreateTemp(filepath.Dir(k.prints), partialPrints+"*")
	if err != nil {
		return report, fmt.Errorf("keep prints: %w", err)
	}
	defer func() {
		partial.Close()
		if err != nil {
			err = errors.Join(err, os.Remove(partial.Name()))
		}
	}()
	generation := newGeneration()
	keep := idxshare.NewPrintsWriter(partial, generation)
	report, err = idxshare.BuildDelta(ctx, k.delta, idxshare.DeltaInput{
		Base: base, Previous: previous, Content: deltaContent{content}, Size: content.Size(), Changed: idxshare.ChangedSince(before, printsOf(content), content.Size(), keep),
	}, idxshare.DeltaOptions{Source: "leaf of " + base.Header().Source, Generation: generation})
	if err == nil {
		err = keep.Close()
	}
	if err == nil {
		err = os.Rename(partial.Name(), k.prints)
	}
	return report, err
}

// deltaContent is a content as package idxshare reads it.
type deltaContent struct{ node.LayerContent }

// ReadRanges implements [idxshare.RangesReader].
func (c deltaContent) ReadRanges(p []byte, ranges []idxshare.ByteRange) error {
	list := make([]node.ContentRange, len(ranges))
	for i, r := range ranges {
		list[i] = node.ContentRange(r)
	}
	return c.LayerContent.ReadRanges(p, list)
}

// open opens what was kept, and nothing where that is not whole.
func (k keptDelta) open(base *idxshare.Index) (previous *idxshare.Index, before iter.Seq2[idxshare.Print, error], done func()) {
	none := func() {}
	x, err := idxshare.Open(k.delta)
	if err != nil {
		return nil, nil, none
	}
	f, err := os.Open(k.prints)
	if err != nil {
		_ = x.Close()
		return nil, nil, none
	}
	done = func() {
		_ = x.Close()
		f.Close()
	}
	st, err := f.Stat()
	if err == nil {
		var generation uint64
		before, generation, err = idxshare.OpenPrints(f, st.Size())
		h := x.Header()
		if err == nil && h.Delta && h.Generation == generation && h.Base == base.Header().Source {
			return x, before, done
		}
	}
	done()
	return nil, nil, none
}

// newGeneration makes up a number that no other time has.
func newGeneration() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // which never fails
	return binary.LittleEndian.Uint64(b[:]) >> 1
}

func printsOf(content node.LayerContent) iter.Seq2[idxshare.Print, error] {
	return func(yield func(idxshare.Print, error) bool) {
		for x, err := range content.Prints() {
			if !yield(idxshare.Print{Block: x.Block, Print: x.Print}, err) {
				return
			}
		}
	}
}

// How much is kept. What was used last stays.
const (
	maxKeptBytes = 2 << 30
	maxKeptFiles = 128
	partialTime  = 24 * time.Hour // after which nobody writes any more what is not whole yet
)

// pruneKept deletes what was used longest ago, until the rest is little enough. Nothing is lost but time: what is not there is made again.
func pruneKept(dir, used string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("bound what is kept: %w", err)
	}
	type file struct {
		path string
		size int64
		used int64
	}
	var files []file
	for _, e := range entries {
		info, err := e.Info()
		path := filepath.Join(dir, e.Name())
		if err == nil && strings.HasPrefix(e.Name(), partialPrints) && time.Since(info.ModTime()) > partialTime {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove what a killed command has left: %w", err)
			}
			continue
		}
		ours := strings.HasSuffix(path, keptDeltaName) || strings.HasSuffix(path, keptPrintsName)
		if err != nil || !ours || strings.TrimSuffix(path, filepath.Ext(path)) == strings.TrimSuffix(used, keptDeltaName) {
			continue
		}
		files = append(files, file{path, info.Size(), info.ModTime().UnixNano()})
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(b.used, a.used) })
	var bytes int64
	var errs []error
	for i, f := range files {
		if bytes += f.size; bytes > maxKeptBytes || i >= maxKeptFiles {
			errs = append(errs, os.Remove(f.path))
		}
	}
	return errors.Join(errs...)
}
