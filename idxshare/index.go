package idxshare

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"sync"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
	"modernc.org/sqlite/vfs"
)

const (
	// maxIdle is how many connections are kept for the next who asks. A search has up to six at once.
	maxIdle = 8
	// connCache is how much of the database a connection keeps, in KiB.
	connCache = 1024
	// maxValue is the longest text or blob that is read, in bytes.
	maxValue = 1 << 20
)

// Index is an index that is open for reading. It is safe for concurrent use.
type Index struct {
	header  Header
	volumes []*ranged
	source  *source
	vfs     *vfs.FS
	vfsName string
	opened  *os.File          // by Open
	roots   map[string]uint32 // pages of tables

	mu     sync.Mutex // guards what follows
	idle   []*reader
	busy   int
	closed bool
}

// reader is a connection for reading.
type reader struct {
	*conn
	file  *sourceFile
	trees *trees

	classes []int64 // of table shared; nil before they are asked for
}

// Open opens the index in a file.
func Open(path string) (*Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open index: %w", err)
	}
	x, err := OpenReaderAt(f, size)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	x.opened = f
	return x, nil
}

// OpenReaderAt opens the index that r has, size bytes long. Only what is asked for is read, in pages of 4 KiB. The bytes must stay as they are. r is not
// closed, and must be safe for concurrent use.
func OpenReaderAt(r io.ReaderAt, size int64) (*Index, error) {
	x, err := openReaderAt(r, size)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return x, nil
}

func openReaderAt(r io.ReaderAt, size int64) (*Index, error) {
	if err := checkStart(r, size); err != nil {
		return nil, err
	}
	x := &Index{source: &source{r: r, size: size}, roots: map[string]uint32{}}
	var err error
	if x.vfsName, x.vfs, err = vfs.New(x.source); err != nil {
		return nil, err
	}
	err = x.use(context.Background(), func(c *reader) error {
		if err := x.checkSchema(c.conn); err != nil {
			return err
		}
		if err := x.readHeader(c.conn); err != nil {
			return err
		}
		return x.readVolumes(c.conn)
	})
	if err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// checkStart looks at the first bytes of the file before SQLite does: the format is at sqlite.org/fileformat2.html, section 1.3.
func checkStart(r io.ReaderAt, size int64) error {
	var b [100]byte
	if size < int64(len(b)) {
		return corruptf("a file of %d bytes", size)
	}
	if n, err := r.ReadAt(b[:], 0); n < len(b) {
		return fmt.Errorf("read the first bytes: %w", err)
	}
	if string(b[:16]) != "SQLite format 3\x00" || binary.BigEndian.Uint32(b[68:]) != applicationID {
		return corruptf("this is no index of Coppice")
	}
	if v := binary.BigEndian.Uint32(b[60:]); v != formatVersion {
		return fmt.Errorf("this is version %d of the format, and %d is known here: build the index anew, or use a newer Coppice: %w", v, formatVersion, ErrVersion)
	}
	pages := int64(binary.BigEndian.Uint32(b[28:]))
	switch {
	case int(binary.BigEndian.Uint16(b[16:])) != pageSize || b[20] != 0, // what each page reserves
		b[18] != 1 || b[19] != 1,             // a rollback journal, and no log beside the file
		binary.BigEndian.Uint32(b[56:]) != 1, // UTF-8
		binary.BigEndian.Uint32(b[52:]) != 0: // no auto-vacuum
		return corruptf("the database has properties that indexes do not have")
	case pages*pageSize != size:
		return corruptf("%d bytes, and %d pages of %d are told of: it was cut off", size, pages, pageSize)
	}
	return nil
}

// checkSchema compares what the database has with what indexes have.
func (x *Index) checkSchema(c *conn) error {
	want := slices.Concat(schema, shadows)
	err := c.query(context.Background(), "SELECT type, name, tbl_name, sql, rootpage FROM sqlite_schema ORDER BY rowid", nil, func(row []driver.Value) error {
		if len(want) == 0 || row[0] != "table" || row[1] != createdBy(want[0]) || row[2] != row[1] || row[3] != want[0] {
			return corruptf("the database has another schema than indexes: %.100v", row[1])
		}
		want = want[1:]
		root, ok := row[4].(int64)
		if ok && root > 0 && root < 1<<31 { // the trigram index itself has none
			x.roots[row[1].(string)] = uint32(root)
		}
		return nil
	})
	if err == nil && len(want) > 0 {
		err = corruptf("the database has no table %s", createdBy(want[0]))
	}
	return err
}

func (x *Index) readHeader(c *conn) error {
	rows := 0
	err := c.query(context.Background(), "SELECT source, size, digests, delta, base, generation FROM header", nil, func(row []driver.Value) error {
		rows++
		r := scan{row: fieldsOf(row)}
		x.header = Header{Source: r.string(), Size: r.int(0, 1<<62), Digests: r.bool(), Delta: r.bool(), Base: r.string(), Generation: uint64(r.any())}
		return r.done("header")
	})
	if err == nil && rows != 1 {
		err = corruptf("%d headers", rows)
	}
	return err
}

func (x *Index) readVolumes(c *conn) error {
	file, block := int64(0), int64(0)
	return c.query(context.Background(), "SELECT id, partition, start, length, type, uuid, label, block_size, root, mapped, first_file, last_file, first_block, last_block "+
		"FROM volume ORDER BY id", nil, func(row []driver.Value) error {
		r := scan{row: fieldsOf(row)}
		v := &ranged{Volume: Volume{ID: int(r.int(0, MaxVolumes-1)), Partition: int(r.int(0, 1<<31)), Start: r.int(0, x.header.Size), Length: r.int(1, x.header.Size),
			Type: r.string(), UUID: r.string(), Label: r.string(), BlockSize: int(r.int(1, 1<<26)), Root: uint64(r.int(0, MaxInode)),
			Mapped: r.bool()}}
		v.firstFile, v.lastFile = r.int(file, 1<<62), r.int(0, 1<<62)
		v.firstBlock, v.lastBlock = r.int(block, 1<<62), r.int(0, 1<<62)
		if err := r.done("volume"); err != nil {
			return err
		}
		if v.lastFile < v.firstFile || v.lastFile-v.firstFile > MaxInode || v.Length > x.header.Size-v.Start || v.lastBlock-v.firstBlock != v.blocks()-1 {
			return corruptf("volume %d does not fit on the device or among the others", v.ID)
		}
		file, block = v.lastFile+1, v.lastBlock+1
		x.volumes = append(x.volumes, v)
		return nil
	})
}

// View returns what answers from this index alone.
func (x *Index) View() *View { return &View{base: x, volumes: x.volumes} }

// Header returns what was indexed.
func (x *Index) Header() Header { return x.header }

// Volumes returns the file systems, in order of their numbers.
func (x *Index) Volumes() []Volume {
	volumes := make([]Volume, 0, len(x.volumes))
	for _, v := range x.volumes {
		volumes = append(volumes, v.Volume)
	}
	return volumes
}

// Close waits for nobody: calls that are under way fail or end, and the last of them gives back what the index holds. The reader can be closed when Close has
// returned and no call is under way.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil
	}
	x.closed = true
	var errs []error
	for _, c := range x.idle {
		errs = append(errs, c.close())
	}
	x.idle = nil
	return errors.Join(append(errs, x.release())...)
}

// release gives back what is shared, when nobody uses it any more. x.mu is held.
func (x *Index) release() error {
	if !x.closed || x.busy > 0 {
		return nil
	}
	err := x.vfs.Close()
	if x.opened != nil {
		x.opened.Close()
	}
	return err
}

// use calls fn with a connection that nobody else has, and makes of the error what it means.
func (x *Index) use(ctx context.Context, fn func(c *reader) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := x.take()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(x.explain(ctx, c, err), x.give(c)) }()
	return fn(c)
}

func (x *Index) take() (*reader, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil, ErrClosed
	}
	if last := len(x.idle) - 1; last >= 0 {
		c := x.idle[last]
		x.idle = x.idle[:last]
		x.busy++
		return c, nil
	}
	c, err := x.connect()
	if err != nil {
		return nil, err
	}
	x.busy++
	return c, nil
}

func (x *Index) give(c *reader) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.busy--
	if !x.closed && len(x.idle) < maxIdle {
		x.idle = append(x.idle, c)
		return nil
	}
	return errors.Join(c.close(), x.release())
}

// connect opens one more connection. x.mu is held, so that the file that is opened is that of the connection.
func (x *Index) connect() (*reader, error) {
	c, err := connect(fileName, url.Values{"vfs": {x.vfsName}, "mode": {"ro"}, "immutable": {"1"}, "_defensive": {"1"}, "_dqs": {"0"}, "_query_only": {"1"},
		"_pragma": {"trusted_schema(0)", "cell_size_check(1)", "temp_store(2)", fmt.Sprintf("cache_size(-%d)", connCache)}})
	r := &reader{conn: c, file: x.source.opened, trees: &trees{source: x.source, roots: x.roots}}
	if err != nil {
		return nil, x.explain(context.Background(), r, err)
	}
	for id, value := range map[int]int{sqlite3.SQLITE_LIMIT_LENGTH: maxValue, sqlite3.SQLITE_LIMIT_ATTACHED: 0, sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0} {
		if err := c.limit(id, value); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return r, nil
}

// explain makes of SQLite's error what it means to the caller: the error of the reader below, the end of the caller's patience, or a damaged index.
func (x *Index) explain(ctx context.Context, c *reader, err error) error {
	if err == nil {
		return nil
	}
	if c.file != nil {
		if cause := c.file.takeError(); cause != nil {
			return fmt.Errorf("read index: %w", cause)
		}
	}
	var failed *sqlite.Error
	if !errors.As(err, &failed) {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// scan reads the columns of a row, and notes what is out of its range.
type scan struct {
	row []field
	bad bool
}

func (s *scan) next() field {
	if len(s.row) == 0 {
		s.bad = true
		return field{}
	}
	v := s.row[0]
	s.row = s.row[1:]
	return v
}

func (s *scan) any() int64 {
	v := s.next()
	s.bad = s.bad || v.kind != integer
	return v.n
}

func (s *scan) int(least, most int64) int64 {
	v := s.any()
	if v < least || v > most {
		s.bad = true
		return least
	}
	return v
}

func (s *scan) bool() bool { return s.int(0, 1) == 1 }

func (s *scan) string() string {
	v := s.next()
	s.bad = s.bad || v.kind != textual
	return string(v.b)
}

// bytes reads a text, a blob or nothing.
func (s *scan) bytes(most int) []byte {
	v := s.next()
	s.bad = s.bad || v.kind == integer || v.kind == another || len(v.b) > most
	return v.b
}

// name reads a name, which hostile indexes do not always have.
func (s *scan) name() []byte {
	b := s.bytes(maxName)
	s.bad = s.bad || !validName(b)
	return b
}

func validName(b []byte) bool {
	return len(b) > 0 && len(b) <= maxName && bytes.IndexByte(b, '/') < 0 && bytes.IndexByte(b, 0) < 0 && string(b) != "." && string(b) != ".."
}

func (s *scan) done(table string) error {
	if s.bad {
		return corruptf("table %s has a value that it cannot have", table)
	}
	return nil
}
