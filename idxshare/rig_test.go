package idxshare

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
)

// world is what an index is made of, as plain slices.
type world struct {
	header  Header
	volumes []Volume
	files   []File
	names   []Name
	extents []Extent
	// Of a delta.
	replacedFiles, replacedDirectories []Name // volume and inode
}

// write makes an index, in an order that depends on the seed.
func (w *world) write(t testing.TB, path string, seed uint64) {
	t.Helper()
	if err := w.tryWrite(path, seed); err != nil {
		t.Fatal(err)
	}
}

func (w *world) tryWrite(path string, seed uint64) error {
	x, err := Create(path, w.header)
	if err != nil {
		return err
	}
	defer x.Abort()
	for _, v := range w.volumes {
		if err := x.AddVolume(v); err != nil {
			return err
		}
	}
	var adds []func() error
	for i := range w.files {
		adds = append(adds, func() error { return x.AddFile(&w.files[i]) })
	}
	for _, n := range w.names {
		adds = append(adds, func() error { return x.AddName(n) })
	}
	for _, e := range w.extents {
		adds = append(adds, func() error { return x.AddExtent(e) })
	}
	for _, n := range w.replacedFiles {
		adds = append(adds, func() error { return x.ReplaceFile(n.Volume, n.Inode) })
	}
	for _, n := range w.replacedDirectories {
		adds = append(adds, func() error { return x.ReplaceDirectory(n.Volume, n.Inode) })
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(adds), func(i, j int) { adds[i], adds[j] = adds[j], adds[i] })
	for _, add := range adds {
		if err := add(); err != nil {
			return err
		}
	}
	return x.Finish()
}

// sort brings everything into the order in which an index has it.
func (w *world) sort() {
	slices.SortFunc(w.files, func(a, b File) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Inode, b.Inode))
	})
	slices.SortFunc(w.names, func(a, b Name) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Parent, b.Parent), bytes.Compare(a.Name, b.Name))
	})
	slices.SortFunc(w.extents, compareExtents)
}

// hostileNames are names that are hard to keep or to find.
var hostileNames = []string{"a\nb", "\xff\xfe", "caf\xe9", "café", "CAFÉ", "Straße", "K", "ſ", "%_*?[", "-rf", " ", "\"quoted\"", "'", "a\xc3", "\xa9b", "日本語のファイル名",
	"\xed\xa0\x80", "\U0001f600", "...", "\t", "\\", string(bytes.Repeat([]byte{0xc3}, 255)), string(bytes.Repeat([]byte("n"), 255))}

// randomWorld makes up two file systems with directories, hard links, shared extents and hostile names.
func randomWorld(rng *rand.Rand, files int) *world {
	w := &world{header: Header{Source: "sha256:0123", Size: 1 << 40, Digests: true}}
	w.volumes = []Volume{
		{ID: 1, Partition: 1, Start: 1 << 20, Length: 64<<30 + 512, Type: "ext4", UUID: "uuid", Label: "root", BlockSize: 4096, Root: 2, Mapped: true},
		{ID: 4, Partition: 3, Start: 65 << 30, Length: 64 << 30, Type: "xfs", BlockSize: 512, Root: 2},
	}
	for _, v := range w.volumes {
		w.populate(rng, v, files/2)
	}
	w.sort()
	return w
}

func (w *world) populate(rng *rand.Rand, v Volume, files int) {
	directories := []uint64{2}
	w.files = append(w.files, File{Volume: v.ID, Inode: 2, Mode: ModeDirectory | 0o755, Links: 2})
	block := int64(1)
	for i := range files {
		inode := uint64(11 + i + rng.IntN(2)*(files+7))
		if slices.ContainsFunc(w.files, func(f File) bool { return f.Volume == v.ID && f.Inode == inode }) {
			continue
		}
		f := File{Volume: v.ID, Inode: inode, Generation: rng.Uint32(), Mode: ModeRegular | 0o644, UID: rng.Uint32(), Size: rng.Int64N(1 << 40), Links: 1,
			Blocks: rng.Int64N(1 << 20), Mtime: rng.Int64() - 1<<62, Atime: 1, Ctime: -1, Crtime: rng.Int64()}
		parent := directories[rng.IntN(len(directories))]
		switch rng.IntN(10) {
		case 0, 1:
			f.Mode = ModeDirectory | 0o700
			directories = append(directories, inode)
		case 2:
			f.Mode, f.Target = ModeSymlink|0o777, []byte(hostileNames[rng.IntN(len(hostileNames))])
		case 3:
			f.Mode, f.Rdev = ModeBlock|0o600, rng.Uint64()
		default:
			f.Digest = make([]byte, digestSize)
			for i := range f.Digest {
				f.Digest[i] = byte(rng.Uint32())
			}
		}
		w.files = append(w.files, f)
		for link := range 1 + rng.IntN(5)/4*2 {
			if f.IsDirectory() && link > 0 {
				break
			}
			name := fmt.Sprintf("%s-%d-%d", hostileNames[rng.IntN(len(hostileNames))], i, link)
			if i < len(hostileNames) {
				name = hostileNames[i] + string(make([]byte, 0, link))
				if link > 0 {
					break
				}
			}
			w.names = append(w.names, Name{Volume: v.ID, Parent: parent, Name: []byte(name[max(0, len(name)-255):]), Inode: inode})
		}
		for range rng.IntN(3) {
			e := Extent{Volume: v.ID, Inode: inode, Kind: ExtentKind(rng.IntN(4)), Logical: rng.Int64N(1 << 30), Physical: block, Length: 1 + rng.Int64N(40), Unwritten: rng.IntN(5) == 0}
			block += e.Length + rng.Int64N(2)*rng.Int64N(5)
			if rng.IntN(10) == 0 {
				block -= rng.Int64N(min(block, 60)) // shared
			}
			w.extents = append(w.extents, e)
		}
	}
}

func openTest(t testing.TB, path string) *Index {
	t.Helper()
	x, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// read returns all that an index has.
func read(t testing.TB, x *Index) *world {
	t.Helper()
	w, err := tryRead(x)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func tryRead(x *Index) (*world, error) {
	w := &world{header: x.Header(), volumes: x.Volumes()}
	ctx := context.Background()
	if err := x.Files(ctx, func(f *File) error {
		w.files = append(w.files, *f)
		return nil
	}); err != nil {
		return nil, err
	}
	if err := x.Names(ctx, func(n Name) error {
		w.names = append(w.names, n)
		return nil
	}); err != nil {
		return nil, err
	}
	if err := x.Extents(ctx, func(e Extent) error {
		w.extents = append(w.extents, e)
		return nil
	}); err != nil {
		return nil, err
	}
	slices.SortFunc(w.extents, compareExtents)
	return w, x.Replaced(ctx, func(volume int, inode uint64, directory bool) error {
		n := Name{Volume: volume, Inode: inode}
		if directory {
			w.replacedDirectories = append(w.replacedDirectories, n)
		} else {
			w.replacedFiles = append(w.replacedFiles, n)
		}
		return nil
	})
}

func (w *world) index(t testing.TB) *Index {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index")
	w.write(t, path, 1)
	return openTest(t, path)
}
