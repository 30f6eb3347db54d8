// Package trace holds boot traces: what a system read of its root disk, and when, from power-on to the login prompt. Command
// vmtests/cmd/boottrace records them, and tests and figures of the cache replay them.
//
// # Format
//
// A trace is text, one record a line, words separated by single spaces. Offsets and lengths are decimal and in sectors of 512 bytes, times decimal
// and in microseconds since the first read.
//
//	coppice boot trace 1
//	# TEXT                       what was recorded and how; any number, before everything else
//	size SECTORS                 of the disk
//	stored PERCENT               of the data's bytes that are left when each 64 KiB are compressed by zstd, 1 to 100
//	prompt TIME                  when the login prompt was there
//	data OFFSET LENGTH           where the disk is not zeros, in whole units of 16 KiB but for the disk's end, ascending, apart
//	read TIME OFFSET LENGTH      a read, in the order in which they came
//
// Each of size, stored and prompt is there once, and the kinds come in this order. The number in the first line is that of the format.
package trace

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	firstLine = "coppice boot trace 1"
	sector    = 512

	// UnitBytes is the unit in which a trace says where data is.
	UnitBytes = 16 << 10

	maxRecords = 1 << 20
	maxSectors = 1 << 44
)

// ErrBad is wrapped by errors that say that something is no trace.
var ErrBad = errors.New("not a boot trace")

// Extent is a stretch of the disk, in bytes.
type Extent struct{ Off, Len int64 }

// Read is one read of the disk.
type Read struct {
	At time.Duration // since the first one
	Extent
}

// Trace is one boot. All offsets and lengths are multiples of 512.
type Trace struct {
	About  []string // lines of text
	Size   int64    // of the disk, in bytes
	Stored int      // percent that compressing leaves of the data
	Prompt time.Duration
	Data   []Extent // where the disk is not zeros, ascending
	Reads  []Read
}

// Load reads a trace from a file.
func Load(path string) (*Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load boot trace: %w", err)
	}
	defer f.Close()
	t, err := Parse(f)
	if err != nil {
		return nil, fmt.Errorf("load boot trace %s: %w", path, err)
	}
	return t, nil
}

// Write writes a trace as text.
func (t *Trace) Write(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, firstLine)
	for _, line := range t.About {
		fmt.Fprintf(b, "# %s\n", line)
	}
	fmt.Fprintf(b, "size %d\nstored %d\nprompt %d\n", t.Size/sector, t.Stored, t.Prompt.Microseconds())
	for _, e := range t.Data {
		fmt.Fprintf(b, "data %d %d\n", e.Off/sector, e.Len/sector)
	}
	for _, r := range t.Reads {
		fmt.Fprintf(b, "read %d %d %d\n", r.At.Microseconds(), r.Off/sector, r.Len/sector)
	}
	return b.Flush()
}

// kind is a kind of record.
type kind struct {
	name    string
	numbers int
	many    bool // there may be any number of them
}

// kinds are in the order in which they come.
var kinds = []kind{{"size", 1, false}, {"stored", 1, false}, {"prompt", 1, false}, {"data", 2, true}, {"read", 3, true}}

// Parse reads a trace from text. Errors name the line.
func Parse(r io.Reader) (*Trace, error) {
	t, lines, last := &Trace{}, bufio.NewScanner(r), -1
	if !lines.Scan() || lines.Text() != firstLine {
		return nil, fmt.Errorf("first line is not %q: %w", firstLine, errors.Join(ErrBad, lines.Err()))
	}
	n := 1
	for ; lines.Scan(); n++ {
		text, about := strings.CutPrefix(lines.Text(), "# ")
		var err error
		switch {
		case n > maxRecords:
			err = fmt.Errorf("more than %d records", maxRecords)
		case !about:
			last, err = t.record(last, text)
		case last >= 0:
			err = errors.New("text after records")
		default:
			t.About = append(t.About, text)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", n+1, err, ErrBad)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	if len(t.Reads) == 0 {
		return nil, fmt.Errorf("there are no reads: %w", ErrBad)
	}
	return t, nil
}

// record takes the record of a line. last is the kind of the one before.
func (t *Trace) record(last int, line string) (int, error) {
	words := strings.Split(line, " ")
	k := slices.IndexFunc(kinds, func(k kind) bool { return k.name == words[0] })
	switch {
	case k < 0:
		return k, fmt.Errorf("unknown record %.20q", words[0])
	case k < last || k == last && !kinds[k].many || last < 2 && k != last+1:
		return k, fmt.Errorf("%s is out of order", words[0])
	case len(words) != kinds[k].numbers+1:
		return k, fmt.Errorf("%s has %d numbers, want %d", words[0], len(words)-1, kinds[k].numbers)
	}
	var v [3]int64
	for i, w := range words[1:] {
		var err error
		if v[i], err = number(w); err != nil {
			return k, err
		}
	}
	return k, t.take(k, v)
}

func number(word string) (n int64, err error) {
	if word == "" {
		return 0, errors.New("a number is missing")
	}
	for _, c := range word {
		if n = n*10 + int64(c-'0'); c < '0' || c > '9' || n > maxSectors {
			return 0, fmt.Errorf("%.20q is no number up to %d", word, int64(maxSectors))
		}
	}
	return n, nil
}

// take puts a record's numbers where they belong.
func (t *Trace) take(k int, v [3]int64) error {
	us := time.Duration(v[0]) * time.Microsecond
	switch kinds[k].name {
	case "size":
		t.Size = v[0] * sector
	case "stored":
		if t.Stored = int(v[0]); t.Stored < 1 || t.Stored > 100 {
			return fmt.Errorf("%d percent are stored", v[0])
		}
	case "prompt":
		t.Prompt = us
	case "data":
		e := Extent{v[0] * sector, v[1] * sector}
		if n := len(t.Data); n > 0 && t.Data[n-1].Off+t.Data[n-1].Len >= e.Off || e.Off%UnitBytes != 0 {
			return errors.New("data is out of order, or not in whole units")
		}
		t.Data = append(t.Data, e)
		return t.within(e)
	default:
		e := Extent{v[1] * sector, v[2] * sector}
		if n := len(t.Reads); n > 0 && t.Reads[n-1].At > us {
			return errors.New("reads are out of order")
		}
		t.Reads = append(t.Reads, Read{us, e})
		return t.within(e)
	}
	return nil
}

func (t *Trace) within(e Extent) error {
	if e.Len < 1 || e.Off+e.Len > t.Size {
		return fmt.Errorf("%d bytes from %d on do not lie on a disk of %d", e.Len, e.Off, t.Size)
	}
	return nil
}

// Bytes returns how much is read in all.
func (t *Trace) Bytes() (n int64) {
	for _, r := range t.Reads {
		n += r.Len
	}
	return n
}

// Chunks returns the numbers of the chunks of a size, in bytes and at least 16 KiB, that hold data and are read, in the order of their first read.
func (t *Trace) Chunks(size int64) []int64 {
	held, out := t.Held(size), []int64(nil)
	for _, r := range t.Reads {
		for i := r.Off / size; i*size < r.Off+r.Len; i++ {
			if held[i] {
				held[i], out = false, append(out, i)
			}
		}
	}
	return out
}

// Held returns the numbers of the chunks of a size, in bytes and at least 16 KiB, that hold data.
func (t *Trace) Held(size int64) map[int64]bool {
	held := map[int64]bool{}
	for _, e := range t.Data {
		for i := e.Off / size; i*size < e.Off+e.Len; i++ {
			held[i] = true
		}
	}
	return held
}
