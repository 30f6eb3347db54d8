package idxshare

import (
	"bytes"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"slices"
	"strings"
)

// loader writes the tables one after the other, each in order of its key, so that its pages are full and lie together.
type loader struct {
	*Writer
	c *conn
	// Made of the names, for the tables that come after them.
	directories *sorter // id, first and last of its names
	links       *sorter // id of a file, id of a name
	lastName    int64   // id
	more        *sorter // the same, for what table link has
}

func (w *Writer) load(c *conn) error {
	l := &loader{Writer: w, c: c}
	for _, s := range []**sorter{&l.directories, &l.links, &l.more} {
		*s = newSorter(w.files.dir, sortMemory)
		defer (*s).close()
	}
	if err := c.run(fmt.Sprintf("PRAGMA page_size=%d", pageSize), "PRAGMA encoding='UTF-8'", "PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA locking_mode=EXCLUSIVE",
		"PRAGMA cache_size=-16384", fmt.Sprintf("PRAGMA application_id=%d", applicationID), fmt.Sprintf("PRAGMA user_version=%d", formatVersion), "BEGIN"); err != nil {
		return err
	}
	if err := c.run(schema...); err != nil {
		return err
	}
	for _, table := range []func() error{l.head, l.loadNames, l.loadDirectories, l.loadFiles, l.loadLinks, l.loadExtents, l.loadReplaced, l.loadTrigrams} {
		if err := table(); err != nil {
			return err
		}
	}
	return c.run("COMMIT")
}

// inserter puts rows into a table, some with each statement: a statement costs as much as several rows.
type inserter struct {
	c       *conn
	one     string // statement that inserts a row
	many    string // and that for [rowsAtOnce]
	columns int
	values  []driver.Value // of the rows that are not in the table yet
}

const rowsAtOnce = 32

func (c *conn) into(table string, columns int) *inserter {
	row := "(?" + strings.Repeat(", ?", columns-1) + ")"
	one := "INSERT INTO " + table + " VALUES" + row
	return &inserter{c: c, one: one, many: one + strings.Repeat(", "+row, rowsAtOnce-1), columns: columns}
}

// add takes a row, of whose bytes it keeps a copy.
func (i *inserter) add(row ...driver.Value) error {
	for _, v := range row {
		if b, ok := v.([]byte); ok {
			v = bytes.Clone(b)
		}
		i.values = append(i.values, v)
	}
	if len(i.values) < rowsAtOnce*i.columns {
		return nil
	}
	err := i.c.exec(i.many, i.values...)
	i.values = i.values[:0]
	return err
}

// end inserts the rows that are left.
func (i *inserter) end() error {
	for row := range slices.Chunk(i.values, i.columns) {
		if err := i.c.exec(i.one, row...); err != nil {
			return err
		}
	}
	i.values = nil
	return nil
}

func number(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// null returns nil for no bytes.
func null(b []byte) driver.Value {
	if len(b) == 0 {
		return nil
	}
	return b
}

func (l *loader) head() error {
	h := l.header
	err := l.c.exec("INSERT INTO header VALUES(1, ?, ?, ?, ?, ?, ?)", h.Source, h.Size, number(h.Digests), number(h.Delta), h.Base, int64(h.Generation))
	if err != nil {
		return err
	}
	file, block := int64(0), int64(0)
	for _, id := range slices.Sorted(maps.Keys(l.volumes)) {
		v := l.volumes[id]
		v.firstFile, v.lastFile = file, file+int64(v.maxInode)
		v.firstBlock, v.lastBlock = block, block+v.blocks()-1
		file, block = v.lastFile+1, v.lastBlock+1
		if v.lastFile < v.firstFile || v.lastBlock < v.firstBlock {
			return badInputf("volumes with too many inodes or blocks for one index")
		}
		err := l.c.exec("INSERT INTO volume VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", int64(v.ID), int64(v.Partition), v.Start, v.Length, v.Type, v.UUID, v.Label,
			int64(v.BlockSize), int64(v.Root), number(v.Mapped), v.firstFile, v.lastFile, v.firstBlock, v.lastBlock)
		if err != nil {
			return err
		}
	}
	return nil
}

// fields reads a record from its front.
type fields []byte

func (f *fields) byte() byte {
	b := (*f)[0]
	*f = (*f)[1:]
	return b
}

func (f *fields) fixed() int64 {
	n := binary.BigEndian.Uint64(*f)
	*f = (*f)[8:]
	return int64(n)
}

func (f *fields) uvarint() int64 {
	n, size := binary.Uvarint(*f)
	*f = (*f)[size:]
	return int64(n)
}

func (f *fields) varint() int64 {
	n, size := binary.Varint(*f)
	*f = (*f)[size:]
	return n
}

// file reads a volume and an inode.
func (l *loader) file(f *fields) (v *ranged, id int64) {
	v = l.volumes[int(f.byte())]
	return v, v.firstFile + f.fixed()
}

// eachName calls fn with every name in order of its id, from 1 on.
func (l *loader) eachName(fn func(id, parent, file int64, name []byte) error) error {
	id := int64(0)
	return l.names.each(func(record []byte) error {
		id++
		f := fields(record)
		v, parent := l.file(&f)
		end := bytes.IndexByte(f, 0)
		name := f[:end]
		f = f[end+1:]
		return fn(id, parent, v.firstFile+f.fixed(), name)
	})
}

func (l *loader) loadNames() error {
	var pair [24]byte
	first, last, of := int64(1), int64(0), int64(-1)
	directory := func() error {
		if last < first {
			return nil
		}
		putPair(&pair, of, first, last)
		return l.directories.add(pair[:])
	}
	var before []byte
	names := l.c.into("name", 4)
	err := l.eachName(func(id, parent, file int64, name []byte) error {
		if parent != of {
			if err := directory(); err != nil {
				return err
			}
			of, first = parent, id
		} else if bytes.Equal(name, before) {
			return badInputf("directory %d has %q twice", parent, name)
		}
		last, before = id, append(before[:0], name...)
		l.lastName = id
		putPair(&pair, file, id, 0)
		if err := l.links.add(pair[:16]); err != nil {
			return err
		}
		return names.add(id, parent, file, text(name))
	})
	if err == nil {
		err = names.end()
	}
	if err != nil {
		return err
	}
	return directory()
}

func putPair(b *[24]byte, x, y, z int64) {
	binary.BigEndian.PutUint64(b[:], uint64(x))
	binary.BigEndian.PutUint64(b[8:], uint64(y))
	binary.BigEndian.PutUint64(b[16:], uint64(z))
}

func (l *loader) loadDirectories() error {
	directories := l.c.into("directory", 3)
	err := l.directories.each(func(record []byte) error {
		f := fields(record)
		return directories.add(f.fixed(), f.fixed(), f.fixed())
	})
	if err == nil {
		err = directories.end()
	}
	return err
}

// loadFiles gives each file its first name; the others go to table link.
func (l *loader) loadFiles() error {
	next, stop := iter.Pull2(l.links.all())
	defer stop()
	var file, name int64
	advance := func() (bool, error) {
		record, err, ok := next()
		if ok && err == nil {
			f := fields(record)
			file, name = f.fixed(), f.fixed()
		}
		return ok, err
	}
	aside := func() error {
		var pair [24]byte
		putPair(&pair, file, name, 0)
		return l.more.add(pair[:16])
	}
	have, err := advance()
	if err != nil {
		return err
	}
	before := int64(-1)
	files := l.c.into("file", 16)
	err = l.files.each(func(record []byte) error {
		f := fields(record)
		v, id := l.file(&f)
		if id == before {
			return badInputf("inode %d of volume %d was added twice", id-v.firstFile, v.ID)
		}
		before = id
		for ; have && file < id; have, err = advance() {
			if err := aside(); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		var first driver.Value
		if have && file == id {
			first = name
			have, err = advance()
		}
		if err != nil {
			return err
		}
		generation, mode, uid, gid, links, rdev := f.uvarint(), f.uvarint(), f.uvarint(), f.uvarint(), f.uvarint(), f.uvarint()
		size, blocks, mtime, atime, ctime, crtime := f.varint(), f.varint(), f.varint(), f.varint(), f.varint(), f.varint()
		target := f[:f.uvarint()]
		digest := f[len(target):]
		return files.add(id, first, mode, uid, gid, size, links, blocks, generation, rdev, mtime, atime, ctime, crtime, text(target), null(digest))
	})
	if err == nil {
		err = files.end()
	}
	for ; have && err == nil; have, err = advance() {
		err = aside()
	}
	return err
}

func (l *loader) loadLinks() error {
	links := l.c.into("link", 2)
	err := l.more.each(func(record []byte) error {
		f := fields(record)
		return links.add(f.fixed(), f.fixed())
	})
	if err == nil {
		err = links.end()
	}
	return err
}

// loadExtents puts those that overlap one before them aside, so that of table extent the one at or before a block is the only one that can have it.
func (l *loader) loadExtents() error {
	var shared, previous []byte
	aside := newSorter(l.files.dir, sortMemory)
	defer aside.close()
	end := int64(0)
	extents := l.c.into("extent", 5)
	err := l.extents.each(func(record []byte) error {
		if bytes.Equal(record, previous) {
			return nil
		}
		previous = append(previous[:0], record...)
		f := fields(record)
		v := l.volumes[int(f.byte())]
		start := v.firstBlock + f.fixed()
		file, logical, length, kind := v.firstFile+f.fixed(), f.fixed(), f.fixed(), f.byte()
		if start < end {
			shared = append(shared[:0], extentClass(length))
			for _, n := range []int64{start, file, logical, length} {
				shared = binary.BigEndian.AppendUint64(shared, uint64(n))
			}
			return aside.add(append(shared, kind))
		}
		end = start + length
		return extents.add(start, length, file, logical, int64(kind))
	})
	if err == nil {
		err = extents.end()
	}
	if err != nil {
		return err
	}
	return aside.each(func(record []byte) error {
		f := fields(record)
		return l.c.exec("INSERT INTO shared VALUES(?, ?, ?, ?, ?, ?)", int64(f.byte()), f.fixed(), f.fixed(), f.fixed(), f.fixed(), int64(f.byte()))
	})
}

// extentClass returns the smallest n with 1<<n at least the length: a block is looked for in the 1<<n blocks before it.
func extentClass(length int64) byte { return byte(bits.Len64(uint64(length) - 1)) }

func (l *loader) loadReplaced() error {
	before := []byte(nil)
	files, directories := l.c.into("replaced_file", 1), l.c.into("replaced_directory", 1)
	err := l.replaced.each(func(record []byte) error {
		if bytes.Equal(record, before) {
			return nil
		}
		before = append(before[:0], record...)
		f := fields(record)
		into := files
		if f.byte() == replacedDirectory {
			into = directories
		}
		_, id := l.file(&f)
		return into.add(id)
	})
	if err == nil {
		err = files.end()
	}
	if err == nil {
		err = directories.end()
	}
	return err
}

// loadTrigrams makes one document of the names of each block of ids. Merging as it goes is put off to the end, where it is done at once.
func (l *loader) loadTrigrams() error {
	if l.header.Delta && l.lastName < leastTrigrams {
		return nil
	}
	const insert = "INSERT INTO trigram(rowid, names) VALUES(?, ?)"
	if err := l.c.run("INSERT INTO trigram(trigram, rank) VALUES('automerge', 0)", "INSERT INTO trigram(trigram, rank) VALUES('crisismerge', 1999)",
		fmt.Sprintf("INSERT INTO trigram(trigram, rank) VALUES('hashsize', %d)", sortMemory)); err != nil {
		return err
	}
	var document []byte
	block := int64(0)
	err := l.eachName(func(id, _, _ int64, name []byte) error {
		if id>>blockShift != block {
			if err := l.c.exec(insert, block, string(document)); err != nil {
				return err
			}
			block, document = id>>blockShift, document[:0]
		}
		document = append(fold(document, name), '/')
		return nil
	})
	if err == nil && len(document) > 0 {
		err = l.c.exec(insert, block, string(document))
	}
	if err != nil {
		return err
	}
	return l.c.run("INSERT INTO trigram(trigram) VALUES('optimize')", "INSERT INTO trigram(trigram, rank) VALUES('automerge', 4)",
		"INSERT INTO trigram(trigram, rank) VALUES('crisismerge', 16)", "INSERT INTO trigram(trigram, rank) VALUES('hashsize', 1048576)")
}
