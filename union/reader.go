package union

// storeReader lets a goroutine read slots that it found in a map: between enter and exit none of them is used again.
type storeReader struct {
	epochs *epochs
	r      *readers
}

func (s *Store) newReader() *storeReader { return &storeReader{s.epochs, s.epochs.join()} }

func (r *storeReader) enter() uint64     { return r.epochs.enter(r.r) }
func (r *storeReader) exit(epoch uint64) { r.r.exit(epoch) }
func (r *storeReader) close()            { r.epochs.leave(r.r) }
