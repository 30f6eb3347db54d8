package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"coppice/ublk/uapi"
)

// Info is what the driver tells about a device.
type Info struct {
	ID         int
	State      State
	PID        int // of the server that started or recovered it last, living or dead; -1 or 0 if none
	Queues     int
	Depth      int
	MaxIOBytes int
	Flags      Features
	OwnerUID   int
	OwnerGID   int
	ServerData uint64
}

func decodeInfo(mem []byte) Info {
	u := (*uapi.DevInfo)(unsafe.Pointer(unsafe.SliceData(mem)))
	return Info{
		ID:         int(u.DevID),
		State:      State(u.State),
		PID:        int(u.PID),
		Queues:     int(u.NrHWQueues),
		Depth:      int(u.QueueDepth),
		MaxIOBytes: int(u.MaxIOBufBytes),
		Flags:      Features(u.Flags),
		OwnerUID:   int(u.OwnerUID),
		OwnerGID:   int(u.OwnerGID),
		ServerData: u.ServerFlags,
	}
}

// GetInfo returns what the driver knows about a device. It fails with [ErrNoDevice].
func (c *Control) GetInfo(ctx context.Context, id int) (Info, error) {
	mem := make([]byte, unsafe.Sizeof(uapi.DevInfo{}))
	if err := c.device(ctx, opGetInfo, id, 0, mem); err != nil {
		return Info{}, err
	}
	return decodeInfo(mem), nil
}

// charClass has an entry for each device of the driver.
const charClass = "class/ublk-char"

// List returns all devices of the machine, whoever made them, in the order of their ids.
func (c *Control) List(ctx context.Context) ([]Info, error) {
	ids, err := deviceIDs(filepath.Join(sysRoot, charClass))
	if err != nil {
		return nil, err
	}
	var all []Info
	for _, id := range ids {
		info, err := c.GetInfo(ctx, id)
		switch {
		case errors.Is(err, ErrNoDevice): // deleted since
		case err != nil:
			return nil, err
		default:
			all = append(all, info)
		}
	}
	return all, nil
}

func deviceIDs(class string) ([]int, error) {
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("list ublk devices: %w", err)
	}
	var ids []int
	for _, e := range entries {
		if id, err := strconv.Atoi(strings.TrimPrefix(e.Name(), "ublkc")); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// affinityBytes is room for the mask of 8192 CPUs, the most that Linux can have.
const affinityBytes = 1024

// QueueAffinity returns the CPUs whose I/O goes to a queue.
func (c *Control) QueueAffinity(ctx context.Context, id, queue int) ([]int, error) {
	mask := make([]byte, affinityBytes)
	if err := c.device(ctx, opAffinity, id, uint64(queue), mask); err != nil {
		return nil, fmt.Errorf("queue %d: %w", queue, err)
	}
	var cpus []int
	for i := range affinityBytes * 8 {
		if mask[i/8]>>(i%8)&1 != 0 {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}
