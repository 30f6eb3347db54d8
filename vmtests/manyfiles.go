package vmtests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// The image that ManyFiles makes.
const (
	manyFiles       = 300_000
	manyDirectories = 25_000
	manySizeBytes   = 8 << 30 // with as many inodes as mke2fs makes unless it is told otherwise
)

// ManyFiles returns an ext4 image with 300,000 files in 25,000 directories, some of which have thousands: most are smaller than a block of 4 KiB, a few have some hundred. It must not be written.
func (b *Build) ManyFiles(ctx context.Context) (string, error) {
	recipe := fmt.Sprint("many files 2 ", manyFiles, manyDirectories, manySizeBytes)
	dir, err := b.asset(ctx, "many-files", recipe, func(ctx context.Context, dir string) error {
		if err := b.need(ctx, "mke2fs"); err != nil {
			return err
		}
		tree := filepath.Join(dir, "tree")
		if err := makeManyFiles(tree, manyFiles, manyDirectories); err != nil {
			return err
		}
		if err := ext4FromTree(ctx, tree, filepath.Join(dir, "image"), manySizeBytes, ""); err != nil {
			return err
		}
		return os.RemoveAll(tree)
	})
	return filepath.Join(dir, "image"), err
}

// makeManyFiles fills a new directory, always in the same way.
func makeManyFiles(tree string, files, directories int) error {
	rng := rand.New(rand.NewPCG(300_000, 1))
	m := &manyMaker{rng: rng, made: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	dirs := []string{tree}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	for len(dirs) < directories {
		parent := dirs[int(rng.Float64()*rng.Float64()*float64(len(dirs)))] // most are not deep
		dir := filepath.Join(parent, m.name(""))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		dirs = append(dirs, dir)
	}
	for left := files; left > 0; {
		dir, count := dirs[rng.IntN(len(dirs))], min(left, 1+int(rng.ExpFloat64()*15))
		if rng.IntN(2000) == 0 {
			count = min(left, 2000)
		}
		for range count {
			if err := m.file(dir); err != nil {
				return err
			}
		}
		left -= count
	}
	return nil
}

// manyMaker makes up names and contents.
type manyMaker struct {
	rng   *rand.Rand
	made  time.Time
	files int
}

// name is of one to three words, and a number that makes it the only one.
func (m *manyMaker) name(ending string) string {
	const syllables = "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ma me mi mo mu na ne ni no nu ra re ri ro ru sa se si so su ta te ti to tu"
	var b []byte
	for range 1 + m.rng.IntN(3) {
		if len(b) > 0 {
			b = append(b, "-_."[m.rng.IntN(3)])
		}
		for range 2 + m.rng.IntN(2) {
			at := m.rng.IntN(45) * 3
			b = append(b, syllables[at:at+2]...)
		}
	}
	m.files++
	return fmt.Sprintf("%s%x%s", b, m.files, ending)
}

func (m *manyMaker) file(dir string) error {
	endings := [...]string{"", "", ".c", ".h", ".so", ".py", ".mo", ".gz", ".conf", ".list", ".md5sums", ".txt", ".js", ".html", ".png", ".json"}
	size := int(m.rng.ExpFloat64() * 2000)
	if m.rng.IntN(500) == 0 {
		size *= 400
	}
	path, content := filepath.Join(dir, m.name(endings[m.rng.IntN(len(endings))])), make([]byte, size)
	for i := range content {
		content[i] = 'a' + byte((i+m.files)%23)
	}
	m.made = m.made.Add(time.Second)
	return errors.Join(os.WriteFile(path, content, 0o644), os.Chtimes(path, m.made, m.made))
}
