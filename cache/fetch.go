package cache

import (
	"context"
	"sync"
	"time"

	"coppice/image"
	"coppice/internal/flight"
)

// askers bounds the chunks that one fetch asks a tier for at a time.
const askers = 16

// fetched is a verified chunk, and where it came from. The content is not changed.
type fetched struct {
	content []byte
	from    Source
}

// stage fetches chunks that memory does not have, each of them once for all who want it. There are two: near asks the disk and the peers, and then far, which
// asks peers for what they have, the appliance, and the origin. What peers ask for goes to far alone, and so no two nodes ever wait for each other.
type stage struct {
	c       *Cache
	flights flight.Group[Key, fetched]
	// run fetches chunks of a root and lands each of them, with an error at the latest when ctx ends.
	run func(ctx context.Context, r *Root, all []*ticket)
}

// ticket is one caller's part in the fetch of a chunk.
type ticket struct {
	Chunk
	fl   *flight.Flight[fetched]
	mine bool // the caller sees to it
	scan bool // it is read in passing
}

// tickets is one caller's part in the fetch of some chunks.
type tickets struct {
	s    *stage
	r    *Root
	scan bool
	all  []*ticket
}

// begin starts to fetch chunks through a root, but for those that somebody else fetches; scan says that they are read in passing. end is called once.
func (s *stage) begin(r *Root, scan bool, chunks []Chunk) tickets {
	t := tickets{s, r, scan, make([]*ticket, len(chunks))}
	var mine []*ticket
	for i, c := range chunks {
		t.all[i] = s.claim(r, scan, c)
		if t.all[i].mine && !s.landed(t.all[i]) {
			mine = append(mine, t.all[i])
		}
	}
	s.start(r, mine)
	return t
}

func (s *stage) claim(r *Root, scan bool, c Chunk) *ticket {
	fl, mine := s.flights.Claim(r.ctx, c.Key)
	return &ticket{c, fl, mine, scan}
}

// landed ends a flight at once if its chunk got into memory after the caller looked there, and before it claimed the flight.
func (s *stage) landed(t *ticket) bool {
	content := make([]byte, t.Len)
	ok := s.c.memory.read(&t.Key, content, 0, false)
	if ok {
		s.flights.Land(t.Key, t.fl, fetched{content, FromMemory}, nil)
	}
	return ok
}

// start fetches in a goroutine, which goes on until nobody waits any more.
func (s *stage) start(r *Root, mine []*ticket) {
	if len(mine) == 0 {
		return
	}
	fetch := func() {
		flights := make([]*flight.Flight[fetched], len(mine))
		for i, t := range mine {
			flights[i] = t.fl
		}
		ctx, cancel := flight.Together(r.ctx, flights)
		defer cancel()
		s.run(ctx, r, mine)
	}
	if !r.spawn(fetch) {
		for _, t := range mine {
			s.land(t, fetched{}, image.ErrClosed)
		}
	}
}

func (s *stage) land(t *ticket, got fetched, err error) { s.flights.Land(t.Key, t.fl, got, err) }

// asked says what the request for the i-th chunk is to memory.
func (t tickets) asked(i int) accessKind {
	if t.all[i].mine {
		return accessMiss
	}
	return accessJoined
}

// wait returns the i-th chunk. Where somebody else's fetch of it failed, through an image of theirs, it is fetched through the caller's.
func (t tickets) wait(ctx context.Context, i int) (fetched, error) {
	for {
		k := t.all[i]
		got, err := k.fl.Wait(ctx)
		if err == nil {
			return got, nil
		}
		if k.mine || ctx.Err() != nil || t.r.ctx.Err() != nil {
			return got, t.r.ended(err)
		}
		t.s.flights.Leave(k.Key, k.fl)
		t.all[i] = t.s.claim(t.r, t.scan, k.Chunk)
		if t.all[i].mine && !t.s.landed(t.all[i]) {
			t.s.start(t.r, []*ticket{t.all[i]})
		}
	}
}

// end says that the caller waits for none of them any more.
func (t tickets) end() {
	for _, k := range t.all {
		t.s.flights.Leave(k.Key, k.fl)
	}
}

// one fetches one chunk.
func (s *stage) one(ctx context.Context, r *Root, c Chunk) (fetched, error) {
	t := s.begin(r, false, []Chunk{c})
	defer t.end()
	return t.wait(ctx, 0)
}

// fetchNear asks disk and peers, and lets far fetch the rest.
func (c *Cache) fetchNear(ctx context.Context, r *Root, all []*ticket) {
	rest := c.ask(ctx, &c.near, c.disk.Load(), (*guard).get, FromDisk, all)
	rest = c.ask(ctx, &c.near, c.peers, (*guard).get, FromPeers, rest)
	if len(rest) == 0 {
		return
	}
	chunks := make([]Chunk, len(rest))
	for i, t := range rest {
		chunks[i] = t.Chunk
	}
	far := c.far.begin(r, rest[0].scan, chunks)
	defer far.end()
	var landing sync.WaitGroup
	for i, t := range rest {
		landing.Go(func() {
			got, err := far.wait(ctx, i)
			c.near.land(t, got, err)
		})
	}
	landing.Wait()
}

// fetchFar asks peers what they have, which makes nobody wait for anybody, and the appliance, and reads the rest from the origin, neighbours in one go.
func (c *Cache) fetchFar(ctx context.Context, r *Root, all []*ticket) {
	rest := c.ask(ctx, &c.far, c.peers, (*guard).held, FromPeers, all)
	rest = c.ask(ctx, &c.far, c.appliance, (*guard).get, FromAppliance, rest)
	var reads sync.WaitGroup
	for _, run := range neighbours(rest) {
		reads.Go(func() { c.readOrigin(ctx, r, run) })
	}
	reads.Wait()
}

// ask lands the chunks that a tier has, and returns the others.
func (c *Cache) ask(ctx context.Context, s *stage, g *guard, get func(*guard, context.Context, Chunk) []byte, from Source, all []*ticket) (rest []*ticket) {
	if g == nil {
		return all
	}
	found := make([]bool, len(all))
	lanes := make(chan struct{}, askers)
	var asking sync.WaitGroup
	for i, t := range all {
		lanes <- struct{}{}
		asking.Go(func() {
			defer func() { <-lanes }()
			if content := get(g, ctx, t.Chunk); content != nil {
				found[i] = true
				c.arrived(s, t, fetched{content, from})
			}
		})
	}
	asking.Wait()
	for i, t := range all {
		if !found[i] {
			rest = append(rest, t)
		}
	}
	return rest
}

// arrived hands a chunk to memory, to those who wait, and to the tiers before the one that it came from.
func (c *Cache) arrived(s *stage, t *ticket, got fetched) {
	c.memory.insert(&t.Key, got.content, t.scan)
	s.land(t, got, nil)
	for i, g := range []*guard{c.disk.Load(), c.peers, c.appliance} {
		if FromDisk+Source(i) < got.from {
			g.put(t.Chunk, got.content)
		}
	}
}

// neighbours cuts chunks, which are in the order of their indexes, into runs of neighbours.
func neighbours(all []*ticket) (runs [][]*ticket) {
	start := 0
	for i := 1; i <= len(all); i++ {
		if i == len(all) || all[i].Index != all[i-1].Index+1 {
			runs = append(runs, all[start:i])
			start = i
		}
	}
	if len(all) == 0 {
		return nil
	}
	return runs
}

// readOrigin lands neighbouring chunks, or a part of the table.
func (c *Cache) readOrigin(ctx context.Context, r *Root, run []*ticket) {
	switch t := run[0]; {
	case t.isSmall():
		c.readSmall(ctx, r, t)
		return
	case t.Index >= TableIndex:
		c.readTablePart(ctx, r, t)
		return
	}
	bytes := 0
	for _, t := range run {
		bytes += t.Len
	}
	content := make([]byte, bytes)
	began := time.Now()
	err := r.ended(r.origin.Read(ctx, content, run[0].Index<<r.shift))
	c.origin.latency.add(time.Since(began))
	c.origin.reads.Add(1)
	if err != nil {
		c.origin.errors.Add(1)
		for _, t := range run {
			c.far.land(t, fetched{}, err)
		}
		return
	}
	c.origin.chunks.Add(uint64(len(run)))
	c.origin.bytes.Add(uint64(bytes))
	for _, t := range run {
		c.arrived(&c.far, t, fetched{content[:t.Len:t.Len], FromOrigin})
		content = content[t.Len:]
	}
}
