package ebpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The maps that are handed over, in this order.
const (
	mapDevices = iota
	mapMarks
	mapHistograms
	handedMaps
)

// Maps are the maps of the programs, as they are handed from one process to another. Who has them closes them.
type Maps struct {
	Files  [handedMaps]*os.File
	Shards int // of the histograms
}

// Close closes the files that there are.
func (m Maps) Close() error {
	var errs []error
	for _, f := range m.Files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// MaxShards is how many CPUs' histograms are kept apart at most; more CPUs share them.
const MaxShards = 8

// ErrNotOurs tells that descriptors are not of the maps of these programs, as this version of them has them.
var ErrNotOurs = errors.New("these are not the maps of this version's programs: load them with the daemon's own program")

// valueBytes are the sizes of their values.
var valueBytes = [handedMaps]uintptr{
	mapDevices: unsafe.Sizeof(latencyDevice{}), mapMarks: unsafe.Sizeof(uint64(0)), mapHistograms: unsafe.Sizeof(latencyHistogram{}),
}

// shape is how many entries the maps have.
type shape struct{ devices, tags, histograms int }

// shape finds out from the kernel what the maps are, without a call of bpf().
func (m Maps) shape() (s shape, err error) {
	if m.Shards < 1 || m.Shards > MaxShards || m.Shards&(m.Shards-1) != 0 {
		return s, fmt.Errorf("%w: %d shards", ErrNotOurs, m.Shards)
	}
	var entries [handedMaps]int
	for i, f := range m.Files {
		if f == nil {
			return s, fmt.Errorf("%w: map %d is missing", ErrNotOurs, i)
		}
		if entries[i], err = arrayEntries(int(f.Fd()), valueBytes[i]); err != nil {
			return s, fmt.Errorf("map %d: %w", i, err)
		}
	}
	s = shape{entries[mapDevices], entries[mapMarks], entries[mapHistograms]}
	if s.devices != minors || s.histograms%(classes*m.Shards) != 0 {
		return s, fmt.Errorf("%w: a table of %d, %d histograms in %d shards", ErrNotOurs, s.devices, s.histograms, m.Shards)
	}
	return s, nil
}

// maxEntries is more than any of the maps can have.
const maxEntries = 1 << 28

// arrayEntries returns the length of an array in memory that can be mapped, of values of a size.
func arrayEntries(fd int, size uintptr) (int, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return 0, err
	}
	if name != "anon_inode:bpf-map" {
		return 0, fmt.Errorf("%w: descriptor %d is %q", ErrNotOurs, fd, name)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	fields := make(map[string]uint64)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 0, 64); err == nil {
			fields[name] = n
		}
	}
	const typeArray, flagMmapable = 2, 1 << 10 // BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE
	n := fields["max_entries"]
	if fields["map_type"] != typeArray || fields["map_flags"]&flagMmapable == 0 || fields["value_size"] != uint64(size) || n == 0 || n > maxEntries {
		return 0, fmt.Errorf("%w: type %d, flags %#x, %d values of %d bytes", ErrNotOurs, fields["map_type"], fields["map_flags"], n, fields["value_size"])
	}
	return int(n), nil
}

// greeting goes with the descriptors.
type greeting struct {
	Shards int `json:"shards"`
}

const maxGreeting = 256

// Send hands the maps to who receives on the other end. They stay the caller's, too.
func (m Maps) Send(c *net.UnixConn) error {
	text, err := json.Marshal(greeting{m.Shards})
	if err != nil {
		return err
	}
	var fds []int
	for _, f := range m.Files {
		fds = append(fds, int(f.Fd()))
	}
	if _, _, err := c.WriteMsgUnix(text, unix.UnixRights(fds...), nil); err != nil {
		return fmt.Errorf("hand over maps: %w", err)
	}
	return nil
}

// Receive takes what [Maps.Send] sent. The caller owns it.
func Receive(c *net.UnixConn) (Maps, error) {
	text, rights := make([]byte, maxGreeting), make([]byte, unix.CmsgSpace(4*handedMaps))
	n, oob, _, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return Maps{}, fmt.Errorf("receive maps: %w", err)
	}
	m, err := unpack(text[:n], rights[:oob])
	if err == nil {
		_, err = m.shape()
	}
	if err != nil {
		return Maps{}, errors.Join(fmt.Errorf("receive maps: %w", err), m.Close())
	}
	return m, nil
}

func unpack(text, rights []byte) (m Maps, err error) {
	var fds []int
	if messages, err := unix.ParseSocketControlMessage(rights); err == nil && len(messages) == 1 {
		fds, _ = unix.ParseUnixRights(&messages[0])
	}
	for i, fd := range fds {
		unix.CloseOnExec(fd)
		if i >= len(m.Files) {
			_ = unix.Close(fd)
			continue
		}
		m.Files[i] = os.NewFile(uintptr(fd), "bpf-map")
	}
	var g greeting
	if err := json.Unmarshal(text, &g); err != nil || len(fds) != handedMaps {
		return m, fmt.Errorf("%w: %d descriptors with %.50q", ErrNotOurs, len(fds), text)
	}
	m.Shards = g.Shards
	return m, nil
}

// Inherited are the maps as a program gets them that a process executes in its own place.
type Inherited struct {
	FDs    [handedMaps]int `json:"fds"`
	Shards int             `json:"shards"`
}

// KeepForExec has the maps stay open when this process executes another program.
func (m Maps) KeepForExec() (Inherited, error) {
	in := Inherited{Shards: m.Shards}
	for i, f := range m.Files {
		in.FDs[i] = int(f.Fd())
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return Inherited{}, fmt.Errorf("keep maps: %w", err)
		}
	}
	return in, nil
}

// Take takes what was kept, unless the descriptors are of something else by now. The caller owns it.
func (in Inherited) Take() (Maps, error) {
	m := Maps{Shards: in.Shards}
	for i, fd := range in.FDs {
		if fd <= 2 {
			return Maps{}, fmt.Errorf("take maps: %w: descriptor %d", ErrNotOurs, fd)
		}
		if _, err := arrayEntries(fd, valueBytes[i]); err != nil {
			return Maps{}, fmt.Errorf("take maps: %w", err)
		}
	}
	for i, fd := range in.FDs {
		unix.CloseOnExec(fd)
		m.Files[i] = os.NewFile(uintptr(fd), "bpf-map")
	}
	return m, nil
}
