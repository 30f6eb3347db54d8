//go:build vm

package vmtests

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"coppice/union"
	"coppice/vmtests/logwrites"
	"coppice/vmtests/powercut"
)

// judge holds cuts against what was promised.
type judge struct {
	t     *testing.T
	dir   string // for what is built of each state: fast, and not durable
	rec   *powercut.Recording
	roots map[string]union.Base // by layer
	raw   *os.File              // the raw device's root
	guest *xfsGuest

	mu  sync.Mutex // guards sum
	sum tally
}

// tally adds up what was seen.
type tally struct {
	states, xfs, files, dropped, wrong int
	modes                              map[powercut.Mode]int
	recovery                           float64 // seconds, the longest
}

// model is what is legal.
type model struct {
	files  map[string]powercut.Files
	blocks *powercut.Blocks
}

// state is one cut with what is legal after it.
type state struct {
	n, epoch int
	cut      powercut.Cut
	disk     powercut.Disk
	model
}

func newJudge(t *testing.T, b *Build, dir string, images map[string]string) *judge {
	t.Helper()
	j := &judge{t: t, dir: dir, roots: make(map[string]union.Base), sum: tally{modes: make(map[powercut.Mode]int)}}
	j.rec = readRecording(t, filepath.Join(dir, "log"))
	for layer, disk := range map[string]string{
		powercut.Ext4Layer: powercut.Ext4Disk, powercut.XFSLayer: powercut.XFSDisk, powercut.RawLayer: powercut.RawDisk,
	} {
		root, err := union.OpenRaw(images[disk])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { root.Close() })
		if j.roots[layer] = (powercut.DeviceRoot{Raw: root}); layer == powercut.RawLayer {
			j.raw = root.File()
		}
	}
	if isDir("/dev/shm") {
		var err error
		if j.dir, err = os.MkdirTemp("/dev/shm", "powercut-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(j.dir) })
	}
	j.guest = startXFSGuest(t, b, j.dir)
	return j
}

func readRecording(t *testing.T, path string) *powercut.Recording {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	log, err := logwrites.Read(f, size)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := powercut.NewRecording(log, cutStore, cutMarks)
	if err != nil {
		t.Fatal(err)
	}
	first, end := rec.Epochs()
	t.Logf("the recording has %d requests, %d MiB; %d flushes after everything was set up", len(log.Entries), size>>20, end-first+1)
	return rec
}

const (
	cutWorkers  = 2 // judge states at the same time; each has a disk in the guest
	cutXFSEvery = 2 // of so many states, one is mounted in the guest, which takes longer than all else
)

// cutAll judges states of epochs spread over the recording: each right after its flush, and in random ways.
func (j *judge) cutAll() {
	seed := uint64(time.Now().UnixNano())
	j.t.Logf("seed %d", seed)
	began := time.Now()
	states := make(chan state)
	var group errgroup.Group
	for worker := range cutWorkers {
		group.Go(func() error {
			for s := range states {
				wrong, err := j.judge(worker, s)
				if err != nil {
					j.t.Errorf("state %d (epoch %d, %v): %v", s.n, s.epoch, s.cut, err)
				}
				if len(wrong) > 0 {
					j.t.Errorf("state %d (epoch %d, %v): %d violations, first:\n%s", s.n, s.epoch, s.cut, len(wrong), strings.Join(wrong[:min(len(wrong), 5)], "\n"))
				}
			}
			return nil
		})
	}
	err := j.produce(seed, states)
	close(states)
	if err := errors.Join(err, group.Wait()); err != nil {
		j.t.Fatal(err)
	}
	j.t.Logf("%d states in %.1f s: %d at flush boundaries, %d between (%v); xfs in %d; %d durable files compared; %d unflushed records dropped; "+
		"longest recovery %.0f ms; %d violations", j.sum.states, time.Since(began).Seconds(), j.sum.modes[powercut.Nothing],
		j.sum.states-j.sum.modes[powercut.Nothing], j.sum.modes, j.sum.xfs, j.sum.files, j.sum.dropped, j.sum.recovery*1000, j.sum.wrong)
	if j.sum.states < cutStates {
		j.t.Errorf("%d states, want %d", j.sum.states, cutStates)
	}
}

// newModel is what is legal before the recording.
func (j *judge) newModel() model {
	m := model{files: map[string]powercut.Files{powercut.Ext4Layer: {}, powercut.XFSLayer: {}}}
	for client, files := range m.files {
		for _, e := range powercut.Initial(client) {
			files.Apply(e)
		}
	}
	m.blocks = powercut.NewBlocks(func(p []byte, block int64) error {
		_, err := j.raw.ReadAt(p, block*powercut.BlockBytes)
		return err
	})
	return m
}

func (m model) apply(e powercut.Event) error {
	if files := m.files[e.Client]; files != nil {
		files.Apply(e)
		return nil
	}
	if e.Kind == powercut.Ready {
		return nil
	}
	return m.blocks.Apply(e)
}

func (m model) clone() model {
	c := model{files: maps.Clone(m.files), blocks: m.blocks.Clone()}
	for client, files := range c.files {
		c.files[client] = files.Clone()
	}
	return c
}

// produce makes cutStates states or one more, in the order of the recording.
func (j *judge) produce(seed uint64, states chan<- state) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	cursor, m := j.rec.Begin(), j.newModel()
	first, end := j.rec.Epochs()
	n := 0
	for epoch := first; epoch < end; epoch++ {
		if err := cursor.Events(epoch, m.apply); err != nil {
			return err
		}
		due := (cutStates*(epoch-first+1) + end - first - 1) / (end - first) // so many until here
		if n >= due {
			continue
		}
		if err := cursor.Advance(epoch); err != nil {
			return err
		}
		// An epoch's turn is its flush boundary and one random cut at least.
		for i := 0; n < due || i == 1; i++ {
			s := state{n: n, epoch: epoch, cut: powercut.Cut{Mode: powercut.Nothing, Seed: rng.Uint64()}, model: m.clone()}
			if i > 0 {
				s.cut.Mode = powercut.RandomModes[rng.IntN(len(powercut.RandomModes))]
			}
			var err error
			if s.disk, err = cursor.Cut(epoch, s.cut); err != nil {
				return err
			}
			states <- s
			n++
		}
	}
	return nil
}

// noticesLies judges disks that have lost everything since a few flushes ago, and wants that to be seen.
func (j *judge) noticesLies() {
	const lies, lost = 4, 16
	cursor, m := j.rec.Begin(), j.newModel()
	first, end := j.rec.Epochs()
	seen := 0
	for i := range lies {
		epoch := first + lost + (end-first-lost)*i/lies
		err := errors.Join(cursor.Advance(epoch-lost), cursor.Events(epoch, m.apply))
		if err != nil {
			j.t.Fatal(err)
		}
		s := state{epoch: epoch, cut: powercut.Cut{Mode: powercut.Nothing}, model: m.clone()}
		if s.disk, err = cursor.Cut(epoch-lost, s.cut); err != nil {
			j.t.Fatal(err)
		}
		wrong, err := j.recover(0, s, &tally{modes: make(map[powercut.Mode]int)})
		if err != nil {
			j.t.Errorf("epoch %d without %d flushes: %v", epoch, lost, err)
		}
		if len(wrong) > 0 {
			seen++
		}
	}
	if j.t.Logf("%d of %d disks that lost %d flushes were noticed", seen, lies, lost); seen == 0 {
		j.t.Error("a disk that loses what it flushed is not noticed")
	}
}

// judge recovers one state and returns what is wrong with it; the error is for what kept it from judging.
func (j *judge) judge(worker int, s state) (wrong []string, err error) {
	one := tally{states: 1, modes: map[powercut.Mode]int{s.cut.Mode: 1}}
	wrong, err = j.recover(worker, s, &one)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sum.add(one)
	j.sum.wrong += len(wrong)
	return wrong, err
}

func (sum *tally) add(one tally) {
	sum.states += one.states
	sum.xfs += one.xfs
	sum.files += one.files
	sum.dropped += one.dropped
	sum.recovery = max(sum.recovery, one.recovery)
	for mode, n := range one.modes {
		sum.modes[mode] += n
	}
}

func (j *judge) recover(worker int, s state, one *tally) (wrong []string, err error) {
	dir, err := os.MkdirTemp(j.dir, "state-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	store := filepath.Join(dir, "store")
	if err := s.disk.WriteFile(store, cutStoreBytes); err != nil {
		return nil, err
	}
	layers := maps.Clone(j.roots)
	if s.n%cutXFSEvery != 0 {
		delete(layers, powercut.XFSLayer)
	}
	how, problems, err := powercut.Recover(j.t.Context(), store, layers, dir)
	if err != nil {
		return nil, err
	}
	one.dropped, one.recovery = how.Dropped, how.DurationSeconds
	for _, p := range problems {
		wrong = append(wrong, "store check: "+p.String())
	}
	for layer := range layers {
		more, err := j.judgeLayer(worker, layer, filepath.Join(dir, layer), s, one)
		if err != nil {
			return nil, err
		}
		wrong = append(wrong, more...)
	}
	return wrong, nil
}

// judgeLayer judges what a device on the layer reads, which is the file image.
func (j *judge) judgeLayer(worker int, layer, image string, s state, one *tally) ([]string, error) {
	one.files += s.files[layer].Durable()
	switch layer {
	case powercut.Ext4Layer:
		return judgeExt4(j.t.Context(), image, s.files[layer])
	case powercut.XFSLayer:
		one.xfs++
		return j.guest.judge(j.t.Context(), worker, image, s.files[layer])
	}
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	read := func(p []byte, block int64) error {
		_, err := f.ReadAt(p, block*powercut.BlockBytes)
		return err
	}
	return s.blocks.Check(read, powercut.RawBytes/powercut.BlockBytes)
}
