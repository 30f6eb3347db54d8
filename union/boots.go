package union

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"

	"coppice/internal/directio"
)

// Blocks 32 and 40 of a store are a record of the boots from its layers. It is no part of what a store keeps about its layers: only who
// boots a machine reads and writes it, in place and past the page cache, also while a daemon has the store open, and a store without it, or one
// made before there was one, is of nobody who ever booted. A record is written where the older one is, so that the one before is there when the
// write tears. A release that does not know the record neither reads nor writes these blocks.
//
//	 0  8  magic "COPPBOOT"
//	 8  2  version of this block
//	10  2  length of the text
//	12  4  CRC-32C of the block
//	16 16  UUID of the store
//	32  8  generation, one more at each write
//	40     text: an object in JSON, see [Boots]; what a reader does not know in it is kept out of the next one
//	       zero to the end
var bootBlocks = [2]int64{32, 40}

const (
	bootVersion  = 1
	bootSumField = 12
	bootTextAt   = 40
	maxBootText  = blockSize - bootTextAt
	maxBootNames = 4 // layers that machines are told to boot from, in one store
	maxFailed    = 2 // remembered for each
)

var bootMagic = [8]byte{'C', 'O', 'P', 'P', 'B', 'O', 'O', 'T'}

// ErrNoBootRecord is returned for stores that have no room for a record of boots: none that [Format] makes.
var ErrNoBootRecord = errors.New("the store has no room for a record of boots")

// Boots is the record of a store: by the name of the layer that a machine is told to boot from, what it boots from.
type Boots struct {
	Layers map[string]BootState `json:"layers"`
}

// Told returns the layer that a machine was told to boot from which has booted from layer: that one itself, or one whose place it has taken. It reports false
// where nothing was booted from it.
func (b Boots) Told(layer string) (string, bool) {
	if _, ok := b.Layers[layer]; ok {
		return layer, true
	}
	for told, s := range b.Layers {
		if s.Layer == layer {
			return told, true
		}
	}
	return "", false
}

// BootState is what is known about the boots from one layer.
type BootState struct {
	// Layer is what the machine boots from: the layer itself, or what has taken its place.
	Layer string `json:"layer"`
	// From is the sealed layer that Layer is to be made from where it does not exist; "" is the root.
	From string `json:"from,omitempty"`
	// Attempts are the boots since the last good one.
	Attempts int `json:"attempts"`
	// Number is of the last layer that has taken a place.
	Number int `json:"number,omitempty"`
	// Failed are the layers whose place was taken, the last ones.
	Failed []string `json:"failed,omitempty"`
	// Root is the content that Layer stands on, as far as the last boot from it knew; zero where that is not known.
	Root Digest `json:"root,omitzero"`
}

type bootBlock struct {
	generation uint64
	text       []byte
}

func (b *bootBlock) encode(p []byte, id uuid.UUID) {
	clear(p[:blockSize])
	copy(p, bootMagic[:])
	le.PutUint16(p[8:], bootVersion)
	le.PutUint16(p[10:], uint16(len(b.text)))
	copy(p[16:], id[:])
	le.PutUint64(p[32:], b.generation)
	copy(p[bootTextAt:], b.text)
	le.PutUint32(p[bootSumField:], blockChecksum(p, bootSumField))
}

// decode reports whether p is an intact block of the store. One of another version is an error.
func (b *bootBlock) decode(p []byte, id uuid.UUID) (bool, error) {
	if !bytes.Equal(p[:8], bootMagic[:]) || blockChecksum(p, bootSumField) != le.Uint32(p[bootSumField:]) || !bytes.Equal(p[16:32], id[:]) {
		return false, nil
	}
	if v := le.Uint16(p[8:]); v != bootVersion {
		return false, fmt.Errorf("record of boots of version %d, this program knows %d: %w", v, bootVersion, ErrVersion)
	}
	n := int(le.Uint16(p[10:]))
	if n > maxBootText {
		return false, &CorruptError{"record of boots", 0, "text too long"}
	}
	b.generation, b.text = le.Uint64(p[32:]), bytes.Clone(p[bootTextAt:bootTextAt+n])
	return true, nil
}

// bootFile is a store whose record of boots is read and written.
type bootFile struct {
	f     fileDisk // that nobody has claimed
	id    uuid.UUID
	block [2]bootBlock
	newer int // index of the block that counts, -1: none
}

// openBoots reads the record of the store at path, which others may have open.
func openBoots(path string, flags int) (*bootFile, error) {
	f, err := directio.Open(path, flags, 0)
	if err != nil {
		return nil, err
	}
	b := &bootFile{f: fileDisk{f: f}, newer: -1}
	if err := b.read(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return b, nil
}

func (b *bootFile) read() error {
	var err error
	if b.f.size, err = directio.Size(b.f.f); err != nil {
		return err
	}
	sb, err := readSuperblock(&b.f)
	if err != nil {
		return err
	}
	b.id = sb.UUID
	if int64(sb.LogA) <= bootBlocks[1] {
		return ErrNoBootRecord
	}
	p := alignedBuffer(blockSize)
	for i, at := range bootBlocks {
		if _, err := b.f.ReadAt(p, at<<blockShift); err != nil {
			return fmt.Errorf("read record of boots: %w", err)
		}
		ok, err := b.block[i].decode(p, b.id)
		if err != nil {
			return err
		}
		if ok && (b.newer < 0 || b.block[i].generation > b.block[b.newer].generation) {
			b.newer = i
		}
	}
	return nil
}

// boots returns what counts; an empty record where there is none.
func (b *bootFile) boots() (Boots, error) {
	r := Boots{Layers: map[string]BootState{}}
	if b.newer < 0 {
		return r, nil
	}
	if err := json.Unmarshal(b.block[b.newer].text, &r); err != nil {
		return r, &CorruptError{"record of boots", bootBlocks[b.newer] << blockShift, err.Error()}
	}
	if r.Layers == nil {
		r.Layers = map[string]BootState{}
	}
	return r, nil
}

// write replaces the older block, durably.
func (b *bootFile) write(r Boots) error {
	text, err := json.Marshal(r)
	if err == nil && len(text) > maxBootText {
		err = fmt.Errorf("it has %d bytes, of %d at most", len(text), maxBootText)
	}
	if err != nil {
		return fmt.Errorf("write record of boots: %w", err)
	}
	next, at := bootBlock{1, text}, 0
	if b.newer >= 0 {
		next.generation, at = b.block[b.newer].generation+1, 1-b.newer
	}
	p := alignedBuffer(blockSize)
	next.encode(p, b.id)
	_, err = b.f.WriteAt(p, bootBlocks[at]<<blockShift)
	if err == nil {
		err = b.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write record of boots: %w", err)
	}
	return nil
}

// ReadBoots returns the record of boots of the store at path, which may be open elsewhere.
func ReadBoots(path string) (Boots, error) {
	var r Boots
	b, err := openBoots(path, os.O_RDONLY)
	if err == nil {
		r, err = b.boots()
		err = errors.Join(err, b.f.Close())
	}
	if err != nil {
		return r, fmt.Errorf("record of boots of %s: %w", path, err)
	}
	return r, nil
}

// ChangeBoots lets change alter what is known about the boots from layer, durably; it is called with what [BootState] is for a layer that was never booted from where
// nothing is known. Of more than four layers those are forgotten that have no attempts, then any. Two callers at once lose a change: a machine boots once at a time.
func ChangeBoots(path, layer string, change func(*BootState) error) error {
	b, err := openBoots(path, os.O_RDWR)
	if err == nil {
		err = errors.Join(b.change(layer, change), b.f.Close())
	}
	if err != nil {
		return fmt.Errorf("record of boots of %s: %w", path, err)
	}
	return nil
}

func (b *bootFile) change(layer string, change func(*BootState) error) error {
	r, err := b.boots()
	if err != nil {
		return err
	}
	s, ok := r.Layers[layer]
	if !ok {
		s.Layer = layer
	}
	if err := change(&s); err != nil {
		return err
	}
	s.Failed = s.Failed[max(0, len(s.Failed)-maxFailed):]
	r.Layers[layer] = s
	r.forget(layer)
	return b.write(r)
}

// forget drops what is too much, but not layer.
func (r *Boots) forget(layer string) {
	var names []string
	for name := range r.Layers {
		if name != layer {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(r.Layers[a].Attempts-r.Layers[b].Attempts, cmp.Compare(a, b))
	})
	for len(r.Layers) > maxBootNames {
		delete(r.Layers, names[0])
		names = names[1:]
	}
}
