package ublk

import (
	"os"

	"golang.org/x/sys/unix"
)

// The reactor is the Target of its queues: target I/O goes to the ring that the queue's
// commands go to, and reaches the kernel with the batch.

// RegisterFile implements [Target].
func (re *reactor) RegisterFile(q *Queue, f *os.File) (File, error) {
	file, err := re.files.hold(f)
	if err != nil {
		return 0, err
	}
	q.lane.files = append(q.lane.files, f)
	return file, nil
}

// ReleaseFiles implements [Target].
func (re *reactor) ReleaseFiles(q *Queue) { q.lane.dropFiles() }

// Read implements [Target].
func (re *reactor) Read(r *Request, f File, p []byte, off int64, cookie uint16) {
	s := re.sqe()
	s.PrepRead(int32(f), addressOf(p), uint32(len(p)), off)
	s.SetFixedFile()
	s.SetUserData(targetData(r, cookie))
}

// Write implements [Target].
func (re *reactor) Write(r *Request, f File, p []byte, off int64, dsync bool, cookie uint16) {
	var flags uint32
	if dsync {
		flags = unix.RWF_DSYNC
	}
	s := re.sqe()
	s.PrepWrite(int32(f), addressOf(p), uint32(len(p)), off, flags)
	s.SetFixedFile()
	s.SetUserData(targetData(r, cookie))
}

// Fsync implements [Target].
func (re *reactor) Fsync(r *Request, f File, cookie uint16) {
	s := re.sqe()
	s.PrepFsync(int32(f), true)
	s.SetFixedFile()
	s.SetUserData(targetData(r, cookie))
}

func targetData(r *Request, cookie uint16) uint64 {
	return uint64(packUserData(kindTarget, r.queue.lane.slot, r.tag, r.gen, cookie))
}

// Post implements [Target].
func (re *reactor) Post(r *Request) {
	re.posts.put(r)
	re.waker.wake()
}

// Commit implements [Target].
func (re *reactor) Commit(r *Request, result int32) {
	l := r.queue.lane
	l.issue(r, false, result)
	if l.state == laneDraining {
		re.touch(l)
	}
}

// Now implements [Target].
func (re *reactor) Now() int64 { return re.now }
