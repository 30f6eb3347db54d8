package union

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// scrubbed scrubs once and returns what was found, one line each.
func (r *rig) scrubbed() (found []string) {
	r.t.Helper()
	if err := r.store.Scrub(context.Background(), ScrubOptions{}, func(p Problem, _ string) { found = append(found, p.String()) }); err != nil {
		r.t.Fatal(err)
	}
	return found
}

// TestScrub damages one thing after the other: it is found, mended where anything else holds it, and what is mended is sound.
func TestScrub(t *testing.T) {
	r := newRig(t, 1, false)
	content := make([]byte, 64<<10)
	fill(content, 4711)
	write := func(off int64) {
		t.Helper()
		if _, err := r.block.WriteAt(content, off); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	r.sealAs("gold")
	write(1 << 20)
	r.sealAs("silver")
	flat := func() {
		t.Helper()
		if err := errors.Join(r.store.flatten(), r.checkpoint()); err != nil {
			t.Fatal(err)
		}
	}
	flat()
	write(2 << 20)
	if err := r.block.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := r.scrubbed(); len(got) != 0 {
		t.Fatalf("found on a sound store: %q", got)
	}
	if st := r.store.ScrubStatus(); st.Passes != 1 || st.LastPass == nil || st.LastBytes != 3*64<<10 || st.DoneBytes != st.TotalBytes {
		t.Errorf("status %+v", st)
	}
	damage := func(off int64) { r.disk.Bytes()[off+600] ^= 0x10 }
	for name, c := range map[string]struct {
		damage func()
		want   []string
	}{
		"superblock A": {func() { damage(superABlock << blockShift) }, []string{"superblock at byte 0: copy A is damaged"}},
		"superblock B": {func() { damage(superBBlock << blockShift) }, []string{"superblock at byte 65536: copy B is damaged"}},
		"both superblocks": {func() { damage(superABlock << blockShift); damage(superBBlock << blockShift) },
			[]string{"copy A", "copy B"}},
		"log A": {func() { damage(r.store.logOffset(r.store.sb.LogA, r.store.log.written)) }, []string{"log at byte", "copy A"}},
		"log B": {func() { damage(r.store.logOffset(r.store.sb.LogB, r.store.log.written)) }, []string{"log at byte", "copy B"}},
		"both logs": {func() {
			for _, first := range []uint64{r.store.sb.LogA, r.store.sb.LogB} {
				damage(r.store.logOffset(first, r.store.log.written))
			}
		}, []string{"both copies"}},
		"catalog": {func() { damage(r.store.sb.slotOffset(r.store.catalogSlots[0].Slot)) }, []string{"catalog at byte"}},
		"bitmap":  {func() { damage(r.store.sb.slotOffset(r.store.slots.pages[0].slot)) }, []string{"bitmap at byte"}},
		"flat map": {func() { damage(r.store.sb.slotOffset(r.store.layers["silver"].flat.store.segments[0].extents[0].Slot)) },
			[]string{"map at byte", `layer "silver": block 0 of a segment of its flat map`}},
		"directory": {func() { damage(r.store.sb.slotOffset(r.store.layers["gold"].m.pages[0].slot)) },
			[]string{"directory at byte", `layer "gold"`}},
	} {
		flat()
		write(3 << 20) // so that the log has something
		if err := r.block.Flush(); err != nil {
			t.Fatal(err)
		}
		mended := r.store.ScrubStatus().Mended
		c.damage()
		got := r.scrubbed()
		for _, want := range c.want {
			if !strings.Contains(strings.Join(got, "\n"), want) {
				t.Errorf("%s: found %q", name, got)
			}
		}
		if st := r.store.ScrubStatus(); st.Mended != mended+len(got) || len(st.Problems) != len(got) {
			t.Errorf("%s: status %+v", name, st)
		}
		if got := r.scrubbed(); len(got) != 0 {
			t.Errorf("%s: found again %q", name, got)
		}
	}

	var m [1]mapping
	var sum [1]uint32
	if err := r.layer.resolve(3, m[:], sum[:]); err != nil {
		t.Fatal(err)
	}
	damage(r.store.sb.slotOffset(m[0].slot()))
	for range 2 {
		got := r.scrubbed()
		if len(got) != 1 || !strings.Contains(got[0], `layer "gold" block 3 (bytes 12288 to 16383 of its device): checksum wrong`) {
			t.Errorf("found %q", got)
		}
	}
	damage(r.store.sb.slotOffset(m[0].slot()))
	damage(r.store.sb.slotOffset(r.store.layers["gold"].m.store.segments[0].extents[0].Slot))
	for range 2 {
		got := r.scrubbed()
		if len(got) != 1 || !strings.Contains(got[0], `layer "gold": block 0 of a segment of its map is damaged`) {
			t.Errorf("found %q", got)
		}
	}
	damage(r.store.sb.slotOffset(r.store.layers["gold"].m.store.segments[0].extents[0].Slot))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantError(t, r.store.Scrub(ctx, ScrubOptions{}, func(Problem, string) {}), context.Canceled, "scrub")
	r.close()
	r.check()
}
