package boottrace

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"coppice/union"
)

// A trace in a file, version 1. Numbers are little-endian; varints are those of encoding/binary, unsigned unless it says signed.
//
//	offset  size
//	0       8     "copevent"
//	8       2     version, 1
//	10      2     length of the kernel's release in bytes, at most 64
//	12      4     chunk size of the root in bytes
//	16      32    content root; zeros: a raw disk
//	48      8     size of the root in bytes
//	56      8     size of the device in bytes
//	64      8     when it began, in ns since 1970
//	72      8     how long the kernel had run then, in ns
//	80      8     lost events
//	88      4     number of events, at most 2^21
//	92      4     number of processes, at most 65536
//	96      4     number of cgroups, at most 65536
//	100     4     0
//	104     n     the kernel's release
//	        n     processes: each a varint with the length of its name (at most 15), and the name
//	        n     cgroups: each a varint with the length of its path (at most 4096), and the path
//	        n     events, in order of when they were made:
//	                  1 byte   operation: 0 read, 1 write; with 0x80: it failed
//	                  1 byte   where the data came from, a bit for each place (union.Origins); 0: not known
//	                  varint   ns since the event before was made; of the first one, since it began
//	                  varint   ns until it was completed
//	                  varint   signed: sector of 512 bytes less the one after the end of the event before (0 at first)
//	                  varint   sectors
//	                  varint   process id
//	                  varint   place in the table of processes
//	                  varint   place in the table of cgroups
//	end-4   4     CRC-32C of all before
//
// A file is written under another name and renamed. One that is torn or damaged is found by its checksum, and is as good as none.
const (
	magic      = "copevent"
	version    = 1
	headerSize = 104
	sumSize    = 4
	failedFlag = 0x80
	// minEvent is the length of the shortest event.
	minEvent = 9

	// MaxFile is how many bytes a file with a trace can have.
	MaxFile = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode returns the trace as a file has it.
func (t *Trace) Encode() ([]byte, error) {
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("encode trace: %w", err)
	}
	le := binary.LittleEndian
	p := make([]byte, headerSize, headerSize+16*len(t.Events))
	copy(p, magic)
	le.PutUint16(p[8:], version)
	le.PutUint16(p[10:], uint16(len(t.Kernel)))
	le.PutUint32(p[12:], uint32(t.ChunkSize))
	copy(p[16:], t.Root[:])
	for i, n := range []uint64{uint64(t.ContentBytes), uint64(t.DeviceBytes), uint64(t.Began.UnixNano()), uint64(t.Uptime), t.Lost} {
		le.PutUint64(p[48+8*i:], n)
	}
	for i, n := range []int{len(t.Events), len(t.Processes), len(t.Cgroups)} {
		le.PutUint32(p[88+4*i:], uint32(n))
	}
	p = append(p, t.Kernel...)
	for _, table := range [][]string{t.Processes, t.Cgroups} {
		for _, name := range table {
			p = append(binary.AppendUvarint(p, uint64(len(name))), name...)
		}
	}
	before := Event{}
	for _, e := range t.Events {
		p = e.append(p, before)
		before = e
	}
	p = le.AppendUint32(p, crc32.Checksum(p, castagnoli))
	if len(p) > MaxFile {
		return nil, fmt.Errorf("encode trace: %d events take %d bytes, more than %d: record for a shorter time", len(t.Events), len(p), MaxFile)
	}
	return p, nil
}

// append encodes the event that comes after another one.
func (e Event) append(p []byte, before Event) []byte {
	flags := byte(e.Op)
	if e.Failed {
		flags |= failedFlag
	}
	p = append(p, flags, byte(e.From))
	p = binary.AppendUvarint(p, uint64(e.At-before.At))
	p = binary.AppendUvarint(p, uint64(e.Took))
	p = binary.AppendVarint(p, (e.Off-before.Off-before.Len)/sector)
	p = binary.AppendUvarint(p, uint64(e.Len/sector))
	p = binary.AppendUvarint(p, uint64(e.PID))
	p = binary.AppendUvarint(p, uint64(e.Process))
	return binary.AppendUvarint(p, uint64(e.Cgroup))
}

// Decode reads what Encode wrote. Its errors are [ErrBadTrace]. It takes no more memory than a small multiple of p.
func Decode(p []byte) (*Trace, error) {
	bad := func(format string, args ...any) (*Trace, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrBadTrace}, args...)...)
	}
	le := binary.LittleEndian
	switch {
	case len(p) < headerSize+sumSize || string(p[:len(magic)]) != magic:
		return bad("it does not begin as one")
	case le.Uint16(p[8:]) != version:
		return bad("it has version %d, this program knows %d", le.Uint16(p[8:]), version)
	case len(p) > MaxFile:
		return bad("it has %d bytes, at most %d are read", len(p), MaxFile)
	}
	body, sum := p[:len(p)-sumSize], le.Uint32(p[len(p)-sumSize:])
	if crc32.Checksum(body, castagnoli) != sum || le.Uint32(p[100:]) != 0 {
		return bad("it is damaged")
	}
	t := &Trace{
		ChunkSize: int(le.Uint32(p[12:])), ContentBytes: int64(le.Uint64(p[48:])), DeviceBytes: int64(le.Uint64(p[56:])),
		Began: time.Unix(0, int64(le.Uint64(p[64:]))), Uptime: time.Duration(le.Uint64(p[72:])), Lost: le.Uint64(p[80:]),
	}
	copy(t.Root[:], p[16:])
	d := decoder{rest: body[headerSize:]}
	t.Kernel = string(d.take(uint64(le.Uint16(p[10:]))))
	events, processes, cgroups := le.Uint32(p[88:]), le.Uint32(p[92:]), le.Uint32(p[96:])
	t.Processes, t.Cgroups = d.table(processes), d.table(cgroups)
	t.Events = d.events(events)
	if d.bad || len(d.rest) != 0 {
		return bad("its tables make no sense")
	}
	if err := t.validate(); err != nil {
		return nil, err
	}
	return t, nil
}

// decoder takes values off the front of what is left. Once it has found something wrong it returns zeros.
type decoder struct {
	rest []byte
	bad  bool
}

// fail gives up.
func (d *decoder) fail() { d.rest, d.bad = nil, true }

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.rest)) {
		d.fail()
		return nil
	}
	p := d.rest[:n]
	d.rest = d.rest[n:]
	return p
}

// uvarint returns a number up to most.
func (d *decoder) uvarint(most uint64) int64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 || v > most {
		d.fail()
		return 0
	}
	d.rest = d.rest[n:]
	return int64(v)
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) table(n uint32) []string {
	if n > maxNames || int64(n) > int64(len(d.rest)) {
		d.fail()
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = string(d.take(uint64(d.uvarint(maxPath))))
	}
	return list
}

func (d *decoder) events(n uint32) []Event {
	if n > MaxEvents || int64(n) > int64(len(d.rest)/minEvent) {
		d.fail()
		return nil
	}
	list := make([]Event, n)
	var before Event
	for i := range list {
		before = d.event(before)
		list[i] = before
	}
	return list
}

// event decodes the event after another one. Numbers that are out of bounds, but can be added without overflowing, are left to [Trace.validate].
func (d *decoder) event(before Event) (e Event) {
	head := d.take(2)
	if head == nil {
		return e
	}
	e.Op, e.Failed, e.From = Op(head[0]&^failedFlag), head[0]&failedFlag != 0, union.Origins(head[1])
	e.At = before.At + time.Duration(d.uvarint(maxTime))
	e.Took = time.Duration(d.uvarint(maxTime))
	skip := d.varint()
	if skip > maxBytes/sector || skip < -maxBytes/sector {
		d.fail()
		return Event{}
	}
	e.Off = before.Off + before.Len + skip*sector
	e.Len = d.uvarint(maxBytes/sector) * sector
	e.PID = int32(d.uvarint(math.MaxInt32))
	e.Process, e.Cgroup = int(d.uvarint(maxNames)), int(d.uvarint(maxNames))
	if e.At > maxTime || e.Off < 0 || e.Off > maxBytes {
		d.fail()
	}
	return e
}
