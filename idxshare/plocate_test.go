package idxshare

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The names of a volume that locate finds are those of the index, but for those with a newline.
func TestIdxExportToPlocate(t *testing.T) {
	dir := t.TempDir()
	x := randomWorld(rand.New(rand.NewPCG(17, 0)), 200).index(t)
	db := filepath.Join(dir, "plocate.db")
	left, err := x.View().ExportPlocate(context.Background(), 1, "/mnt", db)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("plocate", "--database", db, "--null", "--literal", "mnt").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	var want []string
	skipped := 0
	if err := x.View().Find(context.Background(), Query{Volumes: []int{1}}, func(m Match) error {
		if bytes.Contains(m.Path, []byte("\n")) {
			skipped++
		} else {
			want = append(want, "/mnt"+string(m.Path))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || left != skipped || left == 0 {
		t.Errorf("plocate has %d paths, the index %d; %d left out, not %d", len(got), len(want), left, skipped)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}
