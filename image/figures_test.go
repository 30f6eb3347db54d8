package image_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice/image"
)

var figuresFile = flag.String("figures", "", "measure, and write the page to this file")

// figures measures how fast images are built and read, beside those who do something like it in the same run.
type figures struct {
	dir    string
	size   int64 // of the source in bytes
	rounds int
	rows   []string
}

// TestFigures measures the figures of images. Without -figures, it only proves on little that they can be measured.
func TestFigures(t *testing.T) {
	f := &figures{dir: t.TempDir(), size: 8 << 20, rounds: 1}
	publish := int64(16 << 20)
	if *figuresFile != "" {
		f.size, f.rounds, publish = 512<<20, 3, 4<<30
	}
	raw := f.path("raw")
	realContent(t, raw, f.size)
	f.build(t, raw)
	f.read(t, raw)
	f.publish(t, publish)
	page := fmt.Sprintf(`# Figures of images

Written by %s on %s, with Go %s on %d CPUs. Everything lies on one local file system, whose cache is warm; nothing is flushed but what
an image's build flushes. Times are medians of %d rounds in which all of a table take turns.

The source is %s of the files in /usr, one after the other.
%s`, "`make figures`", time.Now().UTC().Format("2006-01-02"), strings.TrimPrefix(runtime.Version(), "go"), runtime.NumCPU(),
		f.rounds, mib(f.size), strings.Join(f.rows, "\n")+"\n")
	t.Log(page)
	if *figuresFile != "" {
		if err := os.WriteFile(*figuresFile, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (f *figures) path(name string) string { return filepath.Join(f.dir, name) }

func mib(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// subject is one way to do a thing. do returns how many bytes came of it.
type subject struct {
	name string
	do   func(round int) (int64, error)
}

// compare lets subjects take turns, and adds a table of them.
func (f *figures) compare(t *testing.T, title string, bytes int64, subjects ...subject) {
	t.Helper()
	times, results := make([][]float64, len(subjects)), make([]int64, len(subjects))
	for round := range f.rounds {
		for i, s := range subjects {
			began := time.Now()
			n, err := s.do(round)
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			times[i], results[i] = append(times[i], time.Since(began).Seconds()), n
		}
	}
	f.rows = append(f.rows, "", "## "+title, "", "| | time | MiB/s | bytes | speed, of the first |", "| --- | --- | --- | --- | --- |")
	first := median(times[0])
	for i, s := range subjects {
		m := median(times[i])
		f.rows = append(f.rows, fmt.Sprintf("| %s | %.2f s | %.0f | %s | %.2f |", s.name, m, float64(bytes>>20)/m, mib(results[i]), first/m))
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// build compares the ways to make something that can be kept from a raw disk.
func (f *figures) build(t *testing.T, raw string) {
	f.compare(t, "Building", f.size,
		subject{"`coppice image build`", func(round int) (int64, error) {
			r, err := buildRaw(f.path(fmt.Sprintf("oci%d", round)), raw, f.size, image.BuildOptions{})
			return r.StoredBytes + r.TableBytes, err
		}},
		subject{"`qemu-img convert -c` to qcow2 (zlib)", func(int) (int64, error) {
			return f.run("qcow2", "qemu-img", "convert", "-c", "-O", "qcow2", raw, f.path("qcow2"))
		}},
		subject{"`qemu-img convert -c` to qcow2 (zstd), 8 coroutines", func(int) (int64, error) {
			return f.run("zstd", "qemu-img", "convert", "-c", "-m", "8", "-W", "-o", "compression_type=zstd", "-O", "qcow2", raw, f.path("zstd"))
		}},
		subject{"`cp`, not compressed", func(int) (int64, error) {
			return f.run("copy", "cp", "--reflink=never", raw, f.path("copy"))
		}})
}

// read compares the ways to read all of it again from beginning to end.
func (f *figures) read(t *testing.T, raw string) {
	f.compare(t, "Reading all of it in sequence into a file", f.size,
		subject{"image, each chunk verified by SHA-256", func(int) (int64, error) {
			_ = os.Remove(f.path("back")) // as for the others
			return readAll(f.path("oci0"), f.path("back"), f.size)
		}},
		subject{"`qemu-img convert` from qcow2 (zlib), not verified", func(int) (int64, error) {
			return f.run("back", "qemu-img", "convert", "-O", "raw", f.path("qcow2"), f.path("back"))
		}},
		subject{"`qemu-img convert` from qcow2 (zstd), not verified", func(int) (int64, error) {
			return f.run("back", "qemu-img", "convert", "-m", "8", "-W", "-O", "raw", f.path("zstd"), f.path("back"))
		}},
		subject{"`cp` of the raw disk, not verified", func(int) (int64, error) {
			return f.run("back", "cp", "--reflink=never", raw, f.path("back"))
		}})
}

// publish stores a version of a large full disk a hundredth of which is other than in the one before.
func (f *figures) publish(t *testing.T, size int64) {
	raw, dir := f.path("large"), f.path("versions")
	file, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	noise := rand.NewChaCha8([32]byte{1})
	if _, err := io.CopyN(file, noise, size); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	first, err := buildRaw(dir, raw, size, image.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	each := min(1<<20, size/100&^4095)
	var changed []image.Extent
	for i := range size / 100 / each { // spread over all of it
		at := i*100*each + each/3
		if _, err := file.Seek(at, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(file, noise, each); err != nil {
			t.Fatal(err)
		}
		changed = append(changed, image.Extent{Off: at, Len: each})
	}
	bytes := int64(len(changed)) * each
	f.rows = append(f.rows, "", "## Publishing a version", "",
		fmt.Sprintf("Noise of %s, of which %s change, in pieces of %d KiB all over it.", mib(size), mib(bytes), each>>10), "",
		"| | time | bytes stored | bytes of the source read | MiB/s, of the change |", "| --- | --- | --- | --- | --- |",
		fmt.Sprintf("| all, the first version | %.2f s | %s | %s | |", whole.Seconds(), mib(first.StoredBytes), mib(first.ReadBytes)))
	for _, way := range []struct {
		name string
		o    image.BuildOptions
	}{
		{"changes that are known, as of a sealed layer", image.BuildOptions{Changed: func() iter.Seq2[image.Extent, error] { return known(changed) }}},
		{"changes found by reading all of it", image.BuildOptions{}},
	} {
		began := time.Now()
		r, err := buildOn(dir, raw, size, way.o)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began).Seconds()
		f.rows = append(f.rows, fmt.Sprintf("| %s | %.2f s | %s | %s | %.0f |", way.name, took, mib(r.StoredBytes), mib(r.ReadBytes), float64(bytes>>20)/took))
		if r.StoredBytes < bytes || r.StoredBytes > bytes*5/4+2*image.DefaultChunkSize {
			t.Errorf("%s: %d bytes stored of a change of %d", way.name, r.StoredBytes, bytes)
		}
	}
}

func known(extents []image.Extent) iter.Seq2[image.Extent, error] {
	return func(yield func(image.Extent, error) bool) {
		for _, e := range extents {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// run runs a program, and returns the size of the file that it made.
func (f *figures) run(made, name string, args ...string) (int64, error) {
	_ = os.Remove(f.path(made)) // is there from the second round on
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	info, err := os.Stat(f.path(made))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func buildRaw(dir, raw string, size int64, o image.BuildOptions) (image.BuildReport, error) {
	if err := os.RemoveAll(dir); err != nil {
		return image.BuildReport{}, err
	}
	l, err := image.CreateLayout(dir)
	if err != nil {
		return image.BuildReport{}, err
	}
	return buildIn(l, "a:1", raw, size, o)
}

func buildOn(dir, raw string, size int64, o image.BuildOptions) (r image.BuildReport, err error) {
	l, err := image.OpenLayout(dir)
	if err != nil {
		return r, err
	}
	base, err := image.Open(context.Background(), l, "a:1")
	if err != nil {
		return r, errors.Join(err, l.Close())
	}
	defer base.Close()
	o.Base = base
	return buildIn(l, "a:2", raw, size, o)
}

func buildIn(l *image.Layout, name, raw string, size int64, o image.BuildOptions) (r image.BuildReport, err error) {
	defer func() { err = errors.Join(err, l.Close()) }()
	in, err := os.Open(raw)
	if err != nil {
		return r, err
	}
	defer in.Close()
	return image.Build(context.Background(), l, name, in, size, o)
}

func readAll(dir, to string, size int64) (int64, error) {
	l, err := image.OpenLayout(dir)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	im, err := image.Open(context.Background(), l, "a:1")
	if err != nil {
		return 0, err
	}
	defer im.Close()
	out, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, io.NewSectionReader(im, 0, size), make([]byte, 16<<20))
	return n, errors.Join(err, out.Close())
}

// realContent fills a file with the files of the system, one after the other, each from a block's beginning on.
func realContent(t *testing.T, path string, size int64) {
	t.Helper()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	at, full := int64(0), errors.New("full")
	err = filepath.WalkDir("/usr", func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // a file that went away meanwhile is not missed
		}
		in, err := os.Open(name)
		if err != nil {
			return nil
		}
		defer in.Close()
		n, err := io.Copy(io.NewOffsetWriter(out, at), io.LimitReader(in, size-at))
		if at = (at + n + 4095) &^ 4095; at >= size {
			return full
		}
		return err
	})
	if !errors.Is(err, full) {
		t.Fatalf("/usr has %s only: %v", mib(at), err)
	}
	if err := out.Truncate(size); err != nil {
		t.Fatal(err)
	}
}
