package union

import "math/bits"

// array is a view of the entries of a region, in the arena. Its class says in which of three forms they are, and for how many there is room:
//
//	       list                                 bits                                  table
//	 0  8  number of entries, flags: all forms
//	 8  8  place of the region's record on the store, or 0
//	16  8  owner: number of the map and region; the arena's
//	24     16 bytes: for each 64 blocks, how    16 words of 2 bytes: for each 64      a value for each block, or 0
//	       many entries there are up to         blocks, how many entries there
//	       their end                            are before them
//	40     for each entry, in order of blocks,
//	       its block in its 64, one byte
//	56                                          a bit for each block that has one
//	       values                               from 184 on: values
//
// A value has 9 bytes: the mapping, and the checksum of the slot's content from byte 5 on. Those of list and bits lie in order of blocks and are found by a rank: one comparison of
// eight bytes at once in a list, one count of bits of a word in the second form (G. Jacobson, "Space-efficient Static Trees and Graphs", 1989). Neither branches on what it finds on the way.
// A list costs less where a region has few entries, a table where it has most blocks.
type array struct {
	b []byte // to the end of its chunk
	c *arrayClass
}

type form uint8

const (
	listForm form = iota
	bitsForm
	tableForm
)

const (
	placeField = 8
	ownerField = 16
	ownerShift = 32 // of the number of the map, less than 1<<24: a list takes the highest byte, 0, for what is before the first 64 blocks
	rankField  = 24
	keyField   = 40
	bitsField  = 56
	bitsValues = bitsField + regionBlocks/8

	valueBytes = 9
	sumField   = 5 // in a value

	groupShift = 6 // blocks that have a rank of their own
	groups     = regionBlocks >> groupShift

	countMask = 0xffff
	flagDirty = 1 << 32 // newer than the record
	flagRead  = 1 << 33 // looked into since eviction last came by
)

// arrayClass is a size of arrays.
type arrayClass struct {
	form    form
	cap     int // entries
	values  int // offset
	size    int // bytes
	perSpan int // arrays in a span of the arena
}

const (
	// numClasses has to fit what a word of the directory has for it.
	numClasses = len(listSizes) + len(bitsSizes) + 1
	tableClass = numClasses - 1
	tableSize  = (rankField + regionBlocks*valueBytes + 63) &^ 63
)

// Sizes are whole cache lines, and grow by a quarter at most, or an eighth where there are some entries, so that little is for entries to come, and what is copied for an entry that makes an array
// grow is about ten entries of others at most. A list is the smaller form up to 138 entries; a table where it takes at most 16 bytes for each.
var (
	listSizes = [...]int{64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 1024, 1152, 1344}
	bitsSizes = [...]int{1600, 1792, 2048, 2304, 2688, 3264, 3648, 4096, 4672, 5440}

	arrayClasses = makeArrayClasses()
)

func makeArrayClasses() (list [numClasses]arrayClass) {
	for i, size := range listSizes {
		n := (size - keyField) / (1 + valueBytes)
		list[i] = arrayClass{form: listForm, cap: n, values: keyField + n, size: size}
	}
	for i, size := range bitsSizes {
		list[len(listSizes)+i] = arrayClass{form: bitsForm, cap: (size - bitsValues) / valueBytes, values: bitsValues, size: size}
	}
	list[tableClass] = arrayClass{form: tableForm, cap: regionBlocks, values: rankField, size: tableSize}
	for i := range list {
		c := &list[i]
		span := chunkBytes
		if c.size <= smallArray {
			span = smallSpan
		}
		c.perSpan = span / c.size
	}
	return list
}

// classFor is the smallest class for n entries.
func classFor(n int) int {
	i := 0
	for arrayClasses[i].cap < n {
		i++
	}
	return i
}

func (a array) count() int        { return int(le.Uint64(a.b) & countMask) }
func (a array) setCount(n int)    { le.PutUint64(a.b, uint64(n)|le.Uint64(a.b)&^countMask) }
func (a array) has(f uint64) bool { return le.Uint64(a.b)&f != 0 }
func (a array) flag(f uint64)     { le.PutUint64(a.b, le.Uint64(a.b)|f) }
func (a array) unflag(f uint64)   { le.PutUint64(a.b, le.Uint64(a.b)&^f) }
func (a array) place() place      { return place(le.Uint64(a.b[placeField:])) }
func (a array) setPlace(p place)  { le.PutUint64(a.b[placeField:], uint64(p)) }

// reset makes an array empty.
func (a array) reset() {
	owner := le.Uint64(a.b[ownerField:])
	if a.c.form == tableForm {
		clear(a.b[:a.c.size])
	} else {
		clear(a.b[:a.c.values])
	}
	le.PutUint64(a.b[ownerField:], owner)
}

func (a array) value(i int) (mapping, uint32) {
	p := a.b[a.c.values+i*valueBytes:]
	return mapping(le.Uint64(p) & mapMask), le.Uint32(p[sumField:])
}

func (a array) setValue(i int, to mapping, sum uint32) {
	p := a.b[a.c.values+i*valueBytes:]
	le.PutUint64(p, uint64(to)|uint64(sum)<<(8*sumField))
	p[valueBytes-1] = byte(sum >> 24)
}

const (
	eachByte = 0x0101010101010101
	eachWord = 0x0001000100010001
	highBits = 0x80 * eachByte
)

// group returns the positions of a list's entries that are in a group of 64 blocks.
func (a array) group(g int) (from, to int) {
	r := le.Uint16(a.b[rankField-1+g:])
	return int(r & 0xff), int(r >> 8)
}

// bitsOf returns the bits of a group, and the position of its first entry.
func (a array) bitsOf(g int) (word uint64, from int) {
	return le.Uint64(a.b[bitsField+8*g:]), int(le.Uint16(a.b[rankField+2*g:]))
}

// one resolves one block of the region; rest is for one without an entry. Whether a block has one is nothing to guess, so where the bits tell it, the first value is looked at instead of none.
func (a array) one(idx int, rest mapping) (mapping, uint32) {
	switch a.c.form {
	case listForm:
		if pos, found := a.findKey(idx); found {
			return a.value(pos)
		}
		return rest, 0
	case bitsForm:
		word, from := a.bitsOf(idx >> groupShift)
		bit := idx & 63
		has := -(word >> bit & 1)
		to, sum := a.value((from + bits.OnesCount64(word&(1<<bit-1))) & int(has))
		return to&mapping(has) | rest&^mapping(has), sum
	}
	to, sum := a.value(idx)
	if to == mapAbsent {
		to = rest
	}
	return to, sum
}

// findKey looks at eight keys at once. A byte that is equal makes its highest bit the lowest that is set (H. S. Warren, "Hacker's Delight", section 6-1).
func (a array) findKey(idx int) (pos int, found bool) {
	from, to := a.group(idx >> groupShift)
	for at := from; at < to; at += 8 {
		differs := le.Uint64(a.b[keyField+at:]) ^ uint64(idx&63)*eachByte
		equal := (differs - eachByte) &^ differs & highBits & (1<<(8*uint(to-at)) - 1)
		if equal != 0 {
			return at + bits.TrailingZeros64(equal)>>3, true
		}
	}
	return 0, false
}

// locate returns the position of a block's value, or where it belongs.
func (a array) locate(idx int) (pos int, found bool) {
	switch a.c.form {
	case tableForm:
		to, _ := a.value(idx)
		return idx, to != mapAbsent
	case bitsForm:
		word, from := a.bitsOf(idx >> groupShift)
		bit := uint64(1) << (idx & 63)
		return from + bits.OnesCount64(word&(bit-1)), word&bit != 0
	}
	pos, to := a.group(idx >> groupShift)
	key := uint64(idx & 63)
	for at := pos; at < to; at += 8 {
		less := ^((le.Uint64(a.b[keyField+at:]) | highBits) - key*eachByte) & highBits & (1<<(8*uint(to-at)) - 1)
		pos += bits.OnesCount64(less)
	}
	return pos, pos < to && uint64(a.b[keyField+pos]) == key
}

// insert adds an entry for a block that has none, at the position that locate returned. There is room.
func (a array) insert(idx, pos int, to mapping, sum uint32) {
	n := a.count()
	a.setCount(n + 1)
	if a.c.form != tableForm {
		a.openGap(idx, pos, n)
	}
	a.setValue(pos, to, sum)
}

// openGap makes room for a value, and says what it is of.
func (a array) openGap(idx, pos, n int) {
	g := idx >> groupShift
	if a.c.form == listForm {
		keys := a.b[keyField : keyField+n+1]
		if pos < n {
			copy(keys[pos+1:], keys[pos:])
		}
		keys[pos] = byte(idx & 63)
		a.addRanks(g, 3, eachByte)
	} else {
		p := a.b[bitsField+8*g:]
		le.PutUint64(p, le.Uint64(p)|1<<(idx&63))
		a.addRanks(g+1, 2, eachWord)
	}
	if pos < n {
		values := a.b[a.c.values+pos*valueBytes : a.c.values+(n+1)*valueBytes]
		copy(values[valueBytes:], values)
	}
}

// addRanks adds one to the ranks from group g on, of which 1<<shift are in eight bytes.
func (a array) addRanks(g, shift int, each uint64) {
	within := g & (1<<shift - 1) << (6 - shift)
	for at := rankField + g>>shift<<3; at < rankField+groups<<3>>shift; at += 8 {
		p := a.b[at:]
		le.PutUint64(p, le.Uint64(p)+each<<within)
		within = 0
	}
}

// read resolves len(out) blocks of the region from idx on; rest is for those without an entry.
func (a array) read(idx int, out []mapping, sums []uint32, rest mapping) {
	if a.c.form == tableForm {
		for i := range out {
			if to, sum := a.value(idx + i); to != mapAbsent {
				out[i], sums[i] = to, sum
			} else {
				out[i] = rest
			}
		}
		return
	}
	for i := range out {
		out[i] = rest
	}
	last := idx + len(out) - 1
	for g := idx >> groupShift; g <= last>>groupShift; g++ {
		base := g<<groupShift - idx
		if a.c.form == listForm {
			from, to := a.group(g)
			for pos := from; pos < to; pos++ {
				if i := base + int(a.b[keyField+pos]); uint(i) < uint(len(out)) {
					out[i], sums[i] = a.value(pos)
				}
			}
			continue
		}
		word, pos := a.bitsOf(g)
		if base < 0 {
			pos += bits.OnesCount64(word & (1<<-base - 1))
			word &^= 1<<-base - 1
		}
		for ; word != 0; word &= word - 1 {
			i := base + bits.TrailingZeros64(word)
			if i >= len(out) {
				break
			}
			out[i], sums[i] = a.value(pos)
			pos++
		}
	}
}

// moveTo copies the entries to an empty array with more room.
func (a array) moveTo(b array) {
	n := a.count()
	le.PutUint64(b.b, le.Uint64(a.b))
	b.setPlace(a.place())
	if a.c.form == b.c.form {
		copy(b.b[rankField:], a.b[rankField:keyField])
		if a.c.form == listForm {
			copy(b.b[keyField:], a.b[keyField:keyField+n])
		} else {
			copy(b.b[keyField:], a.b[keyField:bitsValues])
		}
		copy(b.b[b.c.values:], a.b[a.c.values:a.c.values+n*valueBytes])
		return
	}
	if b.c.form == tableForm {
		a.scatter(b)
		return
	}
	for g := range groups {
		from, to := a.group(g)
		var word uint64
		for pos := from; pos < to; pos++ {
			word |= 1 << a.b[keyField+pos]
		}
		le.PutUint16(b.b[rankField+2*g:], uint16(from))
		le.PutUint64(b.b[bitsField+8*g:], word)
	}
	copy(b.b[b.c.values:], a.b[a.c.values:a.c.values+n*valueBytes])
}

// scatter copies the values to a table.
func (a array) scatter(b array) {
	for g := range groups {
		word, pos := a.bitsOf(g)
		for ; word != 0; word &= word - 1 {
			to, sum := a.value(pos)
			b.setValue(g<<groupShift+bits.TrailingZeros64(word), to, sum)
			pos++
		}
	}
}
