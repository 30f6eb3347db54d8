package idxshare

import (
	"context"
	"errors"
	"fmt"
	"io"

	"coppice/idxshare/ext4"
)

// BuildInput is a device whose file systems are indexed.
type BuildInput struct {
	Device io.ReaderAt // its content, which does not change meanwhile; never written
	Size   int64       // bytes
	// Source identifies the content, for [Header.Source].
	Source string
	// Path is a file or block device with the same content, where there is one: file systems that are not read from blocks are mounted from it. Mounting needs root.
	Path string
}

// BuildOptions say what else is in the index.
type BuildOptions struct {
	Digests bool // read the content of all regular files, and keep its SHA-256
}

// LeftOut is a part of the device of which nothing is in the index.
type LeftOut struct {
	Partition int    `json:"partition"` // 0: the whole device
	Start     int64  `json:"start_bytes"`
	Length    int64  `json:"length_bytes"`
	Type      string `json:"type,omitempty"` // as blkid names it; "": nothing that is known
	Why       string `json:"why"`
}

// BuildReport is what was indexed, and what was not.
type BuildReport struct {
	Volumes  []Volume  `json:"volumes"`
	LeftOut  []LeftOut `json:"left_out"`
	Files    int64     `json:"files"` // inodes
	Names    int64     `json:"names"`
	NoDigest int64     `json:"no_digest"` // regular files without one, though digests were asked for: encrypted, or all but empty and absurdly long
}

// indexed is one volume while it is indexed. Its methods are called in this order, each once.
type indexed interface {
	// digests reads the content of all regular files. It returns how many of them got no digest.
	digests(ctx context.Context) (none int64, err error)
	// write adds everything to the index.
	write(ctx context.Context, b *builder) error
	close() error
}

// builder adds to an index, and counts.
type builder struct {
	w            *Writer
	files, names int64
}

func (b *builder) file(f *File) error {
	b.files++
	return b.w.AddFile(f)
}

func (b *builder) name(n Name) error {
	b.names++
	return b.w.AddName(n)
}

// Build makes the index of a device at path: of each file system in its partitions, or on the device itself where it has none. ext2, ext3 and ext4 are read from their blocks, with a journal that is to be
// replayed; others are mounted read-only, if in.Path is given and this process may, in a namespace of its own. Of mounted ones the index knows files and names, and extents of xfs; a leaf's changes in them are not
// found by blocks ([Volume.Mapped]). What could not be indexed is in the report. A file system that contradicts itself is an error that
// matches [ext4.ErrCorrupt], such a partition table one that matches [ErrPartitions].
func Build(ctx context.Context, path string, in BuildInput, o BuildOptions) (report BuildReport, err error) {
	parts, err := partitions(in.Device, in.Size)
	if err != nil {
		return report, err
	}
	var volumes []indexed
	defer func() {
		for _, v := range volumes {
			err = errors.Join(err, v.close())
		}
	}()
	for _, p := range parts {
		v, found, left, err := openVolume(ctx, in, p, len(volumes))
		if err != nil {
			return report, fmt.Errorf("%s: %w", p, err)
		}
		if found == nil {
			report.LeftOut = append(report.LeftOut, left)
			continue
		}
		volumes = append(volumes, found)
		report.Volumes = append(report.Volumes, v)
	}
	if o.Digests {
		for n, v := range volumes {
			none, err := v.digests(ctx)
			if err != nil {
				return report, fmt.Errorf("volume %d: %w", n, err)
			}
			report.NoDigest += none
		}
	}
	w, err := Create(path, Header{Source: in.Source, Size: in.Size, Digests: o.Digests && report.NoDigest == 0})
	if err != nil {
		return report, err
	}
	defer w.Abort()
	b := &builder{w: w}
	for n, v := range volumes {
		if err := w.AddVolume(report.Volumes[n]); err != nil {
			return report, err
		}
		if err := v.write(ctx, b); err != nil {
			return report, fmt.Errorf("volume %d: %w", n, notOurs(err))
		}
	}
	report.Files, report.Names = b.files, b.names
	return report, notOurs(w.Finish())
}

// notOurs says of what cannot be written into an index, as of a name that a directory has twice, that the file system contradicts itself.
func notOurs(err error) error {
	if errors.Is(err, ErrBadInput) {
		return fmt.Errorf("the file system is %w: %w", ext4.ErrCorrupt, err)
	}
	return err
}

// openVolume finds out what a part holds, and how it is read: not at all where found is nil.
func openVolume(ctx context.Context, in BuildInput, p part, id int) (v Volume, found indexed, left LeftOut, err error) {
	kind, err := probe(in.Device, p)
	if err != nil {
		return v, nil, left, err
	}
	left = LeftOut{Partition: p.number, Start: p.start, Length: p.length, Type: kind}
	v = Volume{ID: id, Partition: p.number, Start: p.start, Length: p.length, Type: kind}
	why, container := containers[kind]
	switch {
	case kind == "":
		left.Why = "it has no file system that is known here"
	case container:
		left.Why = why
	case id >= MaxVolumes:
		left.Why = fmt.Sprintf("an index has at most %d file systems", MaxVolumes)
	case kind == "ext4":
		fs, err := ext4.Open(io.NewSectionReader(in.Device, p.start, p.length), p.length)
		if err == nil {
			info := fs.Info()
			v.Type, v.UUID, v.Label, v.BlockSize, v.Mapped = info.Type, info.UUID.String(), info.Label, info.BlockSize, true
			return v, newExt4Volume(fs, v), left, nil
		}
		if !errors.Is(err, ext4.ErrUnsupported) {
			return v, nil, left, err
		}
		left.Why = err.Error()
	default:
		m, err := openMounted(ctx, in, p, &v)
		if err == nil {
			return v, m, left, nil
		}
		if ctx.Err() != nil {
			return v, nil, left, context.Cause(ctx)
		}
		left.Why = err.Error()
	}
	return v, nil, left, nil
}

func (p part) String() string {
	if p.number == 0 {
		return "the device"
	}
	return fmt.Sprintf("partition %d (bytes %d to %d)", p.number, p.start, p.start+p.length-1)
}
