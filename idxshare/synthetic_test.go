package idxshare

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// synthetic makes up a tree as of an operating system: directories with some twenty names each, of words that are more or less common, with endings and numbers.
// It calls fn with every inode, its only name (but for the root's) and its extent.
func synthetic(seed uint64, files int, fn func(f *File, n Name, e Extent, path []byte) error) error {
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
	type directory struct {
		inode uint64
		path  string
	}
	directories := []directory{{2, ""}}
	if err := fn(&File{Volume: 1, Inode: 2, Mode: ModeDirectory | 0o755, Links: 2, Size: 4096}, Name{}, Extent{Volume: 1, Inode: 2, Kind: ExtentDirectory, Physical: 100, Length: 1}, nil); err != nil {
		return err
	}
	block, now := int64(1000), int64(1_700_000_000_000_000_000)
	var parent directory
	left := 0
	var path []byte
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
		name = fmt.Sprintf("%s%x", name, left) // so that no directory has it twice
		e := Extent{Volume: 1, Inode: inode, Physical: block, Length: max(1, (f.Size+4095)/4096)}
		if i%12 == 5 {
			f.Mode, f.Size, e.Kind, e.Length = ModeDirectory|0o755, 4096, ExtentDirectory, 1
			name = fmt.Sprintf("%s%d", name, i) // and no directory is continued under another's name
			directories = append(directories, directory{inode, parent.path + "/" + name})
		} else {
			name = fmt.Sprintf("%s%x", name, i&0xfff)
		}
		f.Blocks = e.Length * 8
		block += e.Length + int64(rng.IntN(8)/7*rng.IntN(100))
		path = append(append(append(path[:0], parent.path...), '/'), name...)
		if err := fn(f, Name{Volume: 1, Parent: parent.inode, Name: []byte(name), Inode: inode}, e, path); err != nil {
			return err
		}
	}
	return nil
}

// writeSynthetic makes an index of a tree that is made up. Names that a directory would have twice are left out, with their files.
func writeSynthetic(t testing.TB, path string, files int, also func(path []byte)) {
	t.Helper()
	w, err := Create(path, Header{Source: "made up", Size: 1 << 44})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.AddVolume(Volume{ID: 1, Length: 1 << 44, Type: "ext4", BlockSize: 4096, Mapped: true}); err != nil {
		t.Fatal(err)
	}
	type key struct {
		parent uint64
		name   string
	}
	seen := map[key]bool{}
	err = synthetic(1, files, func(f *File, n Name, e Extent, path []byte) error {
		if n.Name != nil {
			if k := (key{n.Parent, string(n.Name)}); seen[k] {
				return nil
			} else if f.Inode != 2 {
				seen[k] = true
			}
			if err := w.AddName(n); err != nil {
				return err
			}
			if also != nil {
				also(path)
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
		writeSynthetic(b, filepath.Join(b.TempDir(), "index"), 300_000, nil)
	}
}
