package node

import (
	"context"
	"net/http"
)

func (s *server) cacheStats(*http.Request) (any, error) { return s.d.CacheStats(), nil }

func (s *server) cacheCurve(*http.Request) (any, error) { return s.d.cache.Curve(), nil }

func (s *server) dropCache(r *http.Request) (any, error) {
	var req CacheDropRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.DropCache(r.Context(), req)
}

func (s *server) setCache(r *http.Request) (any, error) {
	var req CacheSetRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.SetCache(r.Context(), req)
}

// warmCache goes on for as long as the client stays.
func (s *server) warmCache(w http.ResponseWriter, r *http.Request) {
	report(s, w, r, func(ctx context.Context, req CacheWarmRequest, emit func(CacheWarmEvent) error) error {
		return s.d.WarmCache(ctx, r.PathValue("name"), req, emit)
	})
}

// cacheTrace answers with the bytes.
func (s *server) cacheTrace(w http.ResponseWriter, r *http.Request) {
	data, err := s.d.CacheTrace(r.PathValue("name"))
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(data) // an error means that the client has gone: nobody to tell
}
