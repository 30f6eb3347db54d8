package idxshare

import "strings"

// The format, which docs/index-format.md describes. Its version goes up by one with every change, and a number is never used again.
const (
	applicationID = 0x436f7078 // "Copx"
	formatVersion = 1
	pageSize      = 4096
	// writtenBy is what the file says to be SQLite's release, whichever wrote it.
	writtenBy = 3_054_001

	// blockShift is how many names make one document of the trigram index: 1<<blockShift, those whose ids differ in the lowest bits only.
	blockShift = 5
	// leastTrigrams is how many names a delta has at least to have a trigram index. Fewer are looked through in no time, and it takes a third of the time to make a delta.
	leastTrigrams = 1 << 16
	// unwrittenBit is what a kind has more where the extent is not written.
	unwrittenBit = 16
)

// schema is what every index has, in this order, and nothing else: the text is what sqlite_schema has.
var schema = []string{
	`CREATE TABLE header(id INTEGER PRIMARY KEY, source TEXT, size INTEGER, digests INTEGER, delta INTEGER, base TEXT, generation INTEGER)`,
	`CREATE TABLE volume(id INTEGER PRIMARY KEY, partition INTEGER, start INTEGER, length INTEGER, type TEXT, uuid TEXT, label TEXT, block_size INTEGER, ` +
		`root INTEGER, mapped INTEGER, first_file INTEGER, last_file INTEGER, first_block INTEGER, last_block INTEGER)`,
	`CREATE TABLE file(id INTEGER PRIMARY KEY, name INTEGER, mode INTEGER, uid INTEGER, gid INTEGER, size INTEGER, links INTEGER, blocks INTEGER, ` +
		`generation INTEGER, rdev INTEGER, mtime INTEGER, atime INTEGER, ctime INTEGER, crtime INTEGER, target, digest BLOB)`,
	`CREATE TABLE directory(id INTEGER PRIMARY KEY, first INTEGER, last INTEGER)`,
	`CREATE TABLE name(id INTEGER PRIMARY KEY, parent INTEGER, file INTEGER, name)`,
	`CREATE TABLE link(file INTEGER, name INTEGER, PRIMARY KEY(file, name)) WITHOUT ROWID`,
	`CREATE TABLE extent(start INTEGER PRIMARY KEY, length INTEGER, file INTEGER, logical INTEGER, kind INTEGER)`,
	`CREATE TABLE shared(class INTEGER, start INTEGER, file INTEGER, logical INTEGER, length INTEGER, kind INTEGER, ` +
		`PRIMARY KEY(class, start, file, logical, length, kind)) WITHOUT ROWID`,
	`CREATE TABLE replaced_file(id INTEGER PRIMARY KEY)`,
	`CREATE TABLE replaced_directory(id INTEGER PRIMARY KEY)`,
	`CREATE VIRTUAL TABLE trigram USING fts5(names, content='', columnsize=0, detail=none, tokenize='trigram')`,
}

// shadows are the tables that the trigram index consists of. It makes them itself.
var shadows = []string{
	`CREATE TABLE 'trigram_data'(id INTEGER PRIMARY KEY, block BLOB)`,
	`CREATE TABLE 'trigram_idx'(segid, term, pgno, PRIMARY KEY(segid, term)) WITHOUT ROWID`,
	`CREATE TABLE 'trigram_config'(k PRIMARY KEY, v) WITHOUT ROWID`,
}

// createdBy returns the name of what a statement of the schema makes, which is a table.
func createdBy(statement string) string {
	_, rest, _ := strings.Cut(statement, "TABLE ")
	return strings.Trim(rest[:strings.IndexAny(rest, "( ")], "'")
}
