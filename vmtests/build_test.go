package vmtests

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func testBuild(t *testing.T) *Build {
	return &Build{repo: t.TempDir(), dir: t.TempDir(), log: t.Logf}
}

func TestNewBuildFindsRepository(t *testing.T) {
	b, err := NewBuild(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(b.Repo(), "vmtests", "build_test.go")); err != nil {
		t.Error(err)
	}
	t.Chdir(t.TempDir())
	if _, err := NewBuild(nil); err == nil || !strings.Contains(err.Error(), "run inside the repository") {
		t.Errorf("error %v outside the repository, want one that says what to do", err)
	}
}

func TestAssetIsMadeOncePerRecipe(t *testing.T) {
	b, made := testBuild(t), 0
	get := func(recipe string) string {
		dir, err := b.asset(t.Context(), "thing", recipe, func(_ context.Context, dir string) error {
			made++
			return os.WriteFile(filepath.Join(dir, "content"), []byte(recipe), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "content"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for i, recipe := range []string{"one", "one", "two", "two", "one"} {
		if got := get(recipe); got != recipe {
			t.Errorf("call %d: content %q, want %q", i, got, recipe)
		}
	}
	if made != 3 {
		t.Errorf("made %d times, want 3", made)
	}
}

func TestFailedAssetLeavesNothing(t *testing.T) {
	b, boom := testBuild(t), errors.New("boom")
	_, err := b.asset(t.Context(), "thing", "x", func(_ context.Context, dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), boom)
	})
	if !errors.Is(err, boom) {
		t.Errorf("error %v, want boom", err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "thing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half an asset is there: %v", err)
	}
}

func TestCommandErrorTellsWhatWasRun(t *testing.T) {
	_, err := command(t.Context(), "", "sh", "-c", "echo lost >&2; exit 3")
	for _, want := range []string{"sh -c", "exit status 3", "lost"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
}

func TestNewestKernelFirst(t *testing.T) {
	search := `linux-image-6.12.9+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.117+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.43+deb13-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.1.0-9-cloud-amd64-unsigned - an older line
linux-image-6.12.200+deb12-cloud-arm64-unsigned - another machine
`
	got := newestFirst(search)
	want := []string{"117+deb12", "43+deb13", "9+deb12"}
	if len(got) != len(want) {
		t.Fatalf("kernels %v, want %d", got, len(want))
	}
	for i := range want {
		if full := "linux-image-6.12." + want[i] + "-cloud-amd64-unsigned"; got[i] != full {
			t.Errorf("place %d: %s, want %s", i, got[i], full)
		}
	}
}

func TestModuleClosure(t *testing.T) {
	dep := filepath.Join(t.TempDir(), "modules.dep")
	text := `kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/drivers/md/dm-mod.ko: kernel/drivers/dax/dax.ko
kernel/net/unused.ko.xz: kernel/net/other.ko.xz
`
	if err := os.WriteFile(dep, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := moduleClosure(dep, []string{"xfs", "dm-mod"})
	want := []string{"kernel/drivers/dax/dax.ko", "kernel/drivers/md/dm-mod.ko", "kernel/fs/xfs/xfs.ko.xz", "kernel/lib/libcrc32c.ko.xz"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("closure %v, error %v, want %v", got, err, want)
	}
	if _, err := moduleClosure(dep, []string{"ublk_drv"}); err == nil || !strings.Contains(err.Error(), "ublk_drv") {
		t.Errorf("error %v, want one that names the missing module", err)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"1": 1, "4K": 4096, "64M": 64 << 20, "2G": 2 << 30, "1T": 1 << 40} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("size %q: %d, error %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1M", "G", "1X", "99999999T"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("size %q accepted as %d", text, got)
		}
	}
}

func TestScratchDisks(t *testing.T) {
	b := testBuild(t)
	disks, cleanup, err := b.Scratch([]string{"leaf=3M", "other=1K"})
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range []int64{3 << 20, 1 << 10} {
		if info, err := os.Stat(disks[i].Path); err != nil || info.Size() != size {
			t.Errorf("disk %s: %v, error %v, want %d bytes", disks[i].Name, info, err, size)
		}
	}
	cleanup()
	if _, err := os.Stat(disks[0].Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("scratch disk after cleanup: %v", err)
	}
	if _, _, err := b.Scratch([]string{"leaf"}); err == nil {
		t.Error("a disk without a size was accepted")
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "scratch-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
