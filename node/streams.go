package node

import "net/http"

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
	st, err := newStream(w)
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	s.end(st, s.d.Export(r.Context(), r.PathValue("name"), r.PathValue("token"), func(e ExportEvent) error { return st.emit(e) }))
}

func (s *server) changed(w http.ResponseWriter, r *http.Request) {
	st, err := newStream(w)
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	s.end(st, s.d.Changed(r.Context(), r.PathValue("name"), func(p ChangedPart) error { return st.emit(p) }))
}

func (s *server) removeLayer(r *http.Request) (any, error) {
	var req LayerRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return struct{}{}, s.d.RemoveLayer(r.Context(), req)
}

// detach tells the progress for as long as the client stays; the work goes on without it.
func (s *server) detach(w http.ResponseWriter, r *http.Request) {
	var req DetachRequest
	if err := decodeBody(r.Body, &req); err != nil {
		s.fail(w, Explain(err))
		return
	}
	st, err := newStream(w)
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	s.end(st, s.d.Detach(r.Context(), req, func(status DetachStatus) error { return st.emit(status) }))
}

// moveLayer goes on for as long as the client stays.
func (s *server) moveLayer(w http.ResponseWriter, r *http.Request) {
	var req MoveRequest
	if err := decodeBody(r.Body, &req); err != nil {
		s.fail(w, Explain(err))
		return
	}
	st, err := newStream(w)
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	s.end(st, s.d.MoveLayer(r.Context(), req, func(e MoveEvent) error { return st.emit(e) }))
}

// scrub tells the progress for as long as the client stays; the pass goes on without it.
func (s *server) scrub(w http.ResponseWriter, r *http.Request) {
	var req ScrubRequest
	if err := decodeBody(r.Body, &req); err != nil {
		s.fail(w, Explain(err))
		return
	}
	st, err := newStream(w)
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	s.end(st, s.d.Scrub(r.Context(), req, func(rep ScrubReport) error { return st.emit(rep) }))
}
