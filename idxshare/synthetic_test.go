package idxshare

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// synthetic makes up a tree as of an operating system: directories with some twenty names each, of words that are more or less common, with endings and numbers.
// It calls fn with every inode, its only name (but for the root's) and its extent.
func synthetic(seed uint64, files int, fn func(f *File, n Name, e Extent) error) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	const syllables = "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ma me mi mo mu na ne ni no nu ra re ri ro ru sa se si so su ta te ti to tu"
	words := make([]string, 20000)
	for i := range words {
		for range 2 + rng.IntN(3) {
			at := rng.IntN(45) * 3
			words[i] += syllables[at : at+2]
		}
	}
	endings := []string{"", "", "", ".c", ".h", ".so", ".py", ".pyc", ".mo", ".gz", ".conf", ".list", ".md5sums", ".txt", ".js", ".html", ".png", ".svg", ".json", ".d"}
	word := func() string { return words[int(float64(len(words))*rng.Float64()*rng.Float64()*rng.Float64())] }
	directories := []uint64{2}
	if err := fn(&File{Volume: 1, Inode: 2, Mode: ModeDirectory | 0o755, Links: 2, Size: 4096}, Name{}, Extent{Volume: 1, Inode: 2, Kind: ExtentDirectory, Physical: 100, Length: 1}); err != nil {
		return err
	}
	block, now := int64(1000), int64(1_700_000_000_000_000_000)
	var parent uint64
	left := 0
	for i := 1; i < files; i++ {
		if left == 0 {
			parent, left = directories[rng.IntN(len(directories))], 1+rng.IntN(40)
		}
		left--
		inode := uint64(10 + i)
		f := &File{Volume: 1, Inode: inode, Mode: ModeRegular | 0o644, Size: int64(rng.ExpFloat64() * 20000), Links: 1, Generation: rng.Uint32(),
			Mtime: (now/1e9 - int64(rng.IntN(1e8))) * 1e9, Atime: now, Ctime: now + int64(rng.IntN(1e8)), Crtime: now}
		now += int64(rng.IntN(1e8))
		name := fmt.Sprintf("%s%s", word(), endings[rng.IntN(len(endings))])
		switch rng.IntN(6) {
		case 0:
			name = fmt.Sprintf("%s-%d.%d%s", word(), rng.IntN(10), rng.IntN(100), endings[rng.IntN(len(endings))])
		case 1:
			name = word() + "_" + name
		case 2:
			name = word() + "-" + name
		}
		name = fmt.Sprintf("%s%x", name, i) // so that no directory has it twice
		e := Extent{Volume: 1, Inode: inode, Physical: block, Length: max(1, (f.Size+4095)/4096)}
		if i%12 == 5 {
			f.Mode, f.Size, e.Kind, e.Length = ModeDirectory|0o755, 4096, ExtentDirectory, 1
			directories = append(directories, inode)
		}
		f.Blocks = e.Length * 8
		block += e.Length + int64(rng.IntN(8)/7*rng.IntN(100))
		if err := fn(f, Name{Volume: 1, Parent: parent, Name: []byte(name), Inode: inode}, e); err != nil {
			return err
		}
	}
	return nil
}

// writeSynthetic makes an index of a tree that is made up.
func writeSynthetic(t testing.TB, path string, files int) {
	t.Helper()
	w, err := Create(path, Header{Source: "made up", Size: 1 << 44})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.AddVolume(Volume{ID: 1, Length: 1 << 44, Type: "ext4", BlockSize: 4096, Mapped: true}); err != nil {
		t.Fatal(err)
	}
	err = synthetic(1, files, func(f *File, n Name, e Extent) error {
		if n.Name != nil {
			if err := w.AddName(n); err != nil {
				return err
			}
		}
		if err := w.AddFile(f); err != nil {
			return err
		}
		return w.AddExtent(e)
	})
	if err == nil {
		err = w.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkWrite writes an index of 300,000 files.
func BenchmarkWrite(b *testing.B) {
	for range b.N {
		writeSynthetic(b, filepath.Join(b.TempDir(), "index"), 300_000)
	}
}
