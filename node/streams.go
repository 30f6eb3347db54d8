package node

import (
	"context"
	"net/http"
	"strconv"
)

func (s *server) prepareExport(r *http.Request) (any, error) {
	var req ExportRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.PrepareExport(r.Context(), r.PathValue("name"), req)
}

func (s *server) cancelExport(r *http.Request) (any, error) {
	return struct{}{}, s.d.CancelExport(r.PathValue("name"), r.PathValue("token"))
}

// export goes on for as long as the client stays.
func (s *server) export(w http.ResponseWriter, r *http.Request) {
	s.stream(w, func(st *stream) error {
		return s.d.Export(r.Context(), r.PathValue("name"), r.PathValue("token"), func(e ExportEvent) error { return st.emit(e) })
	})
}

func (s *server) changed(w http.ResponseWriter, r *http.Request) {
	s.stream(w, func(st *stream) error {
		return s.d.Changed(r.Context(), r.PathValue("name"), func(p ChangedPart) error { return st.emit(p) })
	})
}

func (s *server) removeLayer(r *http.Request) (any, error) {
	var req LayerRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return struct{}{}, s.d.RemoveLayer(r.Context(), req)
}

// stream answers with what the work reports.
func (s *server) stream(w http.ResponseWriter, work func(st *stream) error) {
	st, err := newStream(w)
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	s.end(st, work(st))
}

// report reads a request and answers with what the work on it reports.
func report[Request, Event any](s *server, w http.ResponseWriter, r *http.Request, work func(context.Context, Request, func(Event) error) error) {
	var req Request
	if err := decodeBody(r.Body, &req); err != nil {
		s.fail(w, Explain(err))
		return
	}
	s.stream(w, func(st *stream) error {
		return work(r.Context(), req, func(e Event) error { return st.emit(e) })
	})
}

// detach tells the progress for as long as the client stays; the work goes on without it.
func (s *server) detach(w http.ResponseWriter, r *http.Request) { report(s, w, r, s.d.Detach) }

// replicateRoot goes on for as long as the client stays.
func (s *server) replicateRoot(w http.ResponseWriter, r *http.Request) {
	report(s, w, r, func(ctx context.Context, req ReplicateRequest, emit func(ReplicateEvent) error) error {
		return s.d.ReplicateRoot(ctx, r.PathValue("name"), req, emit)
	})
}

// moveLayer goes on for as long as the client stays.
func (s *server) moveLayer(w http.ResponseWriter, r *http.Request) { report(s, w, r, s.d.MoveLayer) }

// scrub tells the progress for as long as the client stays; the pass goes on without it.
func (s *server) scrub(w http.ResponseWriter, r *http.Request) { report(s, w, r, s.d.Scrub) }

// openContent keeps the content open for as long as the client stays.
func (s *server) openContent(w http.ResponseWriter, r *http.Request) {
	report(s, w, r, s.d.OpenContent)
}

func (s *server) changedContent(w http.ResponseWriter, r *http.Request) {
	s.stream(w, func(st *stream) error {
		return s.d.ChangedContent(r.PathValue("token"), func(p ChangedPart) error { return st.emit(p) })
	})
}

func (s *server) printsContent(w http.ResponseWriter, r *http.Request) {
	s.stream(w, func(st *stream) error {
		return s.d.PrintsContent(r.PathValue("token"), func(p PrintsPart) error { return st.emit(p) })
	})
}

func (s *server) prepareContent(r *http.Request) (any, error) {
	var req ReadRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.PrepareContent(r.Context(), r.PathValue("name"), req)
}

func (s *server) cancelContent(r *http.Request) (any, error) {
	return struct{}{}, s.d.CancelContent(r.Context(), r.PathValue("name"), r.PathValue("token"))
}

// deviceContent keeps the content open for as long as the client stays.
func (s *server) deviceContent(w http.ResponseWriter, r *http.Request) {
	s.stream(w, func(st *stream) error {
		return s.d.DeviceContent(r.Context(), r.PathValue("name"), r.PathValue("token"), func(o OpenedCut) error { return st.emit(o) })
	})
}

func (s *server) nextContent(r *http.Request) (any, error) {
	off, err := queryNumber(r, "off")
	if err != nil {
		return nil, err
	}
	return s.d.NextContent(r.PathValue("token"), off)
}

// bytes answers with the bytes of the range that a request asks for.
func (s *server) bytes(most int64, read func(r *http.Request, p []byte, off int64) error) http.HandlerFunc {
	answer := func(r *http.Request) ([]byte, error) {
		off, err := queryNumber(r, "off")
		if err != nil {
			return nil, err
		}
		n, err := queryNumber(r, "len")
		if err != nil {
			return nil, err
		}
		if n < 1 || n > most {
			return nil, fail(CodeBadRequest, "", "%d bytes: 1 to %d are read at a time", n, most)
		}
		p := make([]byte, n)
		return p, read(r, p, off)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := answer(r)
		s.writeBytes(w, p, err)
	}
}

// writeBytes answers with bytes.
func (s *server) writeBytes(w http.ResponseWriter, p []byte, err error) {
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(p))) // so that who reads so many bytes has read to the end, and the connection can be kept
	_, _ = w.Write(p)                                      // an error means that the client has gone: nobody to tell
}

func (s *server) readRanges(w http.ResponseWriter, r *http.Request) {
	var req RangesRequest
	err := decodeBody(r.Body, &req)
	var p []byte
	if err == nil {
		p, err = s.d.ReadContentRanges(r.PathValue("token"), req)
	}
	s.writeBytes(w, p, err)
}

func (s *server) readContent(r *http.Request, p []byte, off int64) error {
	return s.d.ReadContent(r.PathValue("token"), p, off)
}

func queryNumber(r *http.Request, key string) (int64, error) {
	n, err := strconv.ParseInt(r.URL.Query().Get(key), 10, 64)
	if err != nil {
		return 0, fail(CodeBadRequest, "", "%s: %w", key, err)
	}
	return n, nil
}
