package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"
)

// Deadlines of the socket. Answers to changes may take as long as the operation.
const (
	readTime   = 5 * time.Second
	idleTime   = 30 * time.Second
	answerTime = 10 * time.Second
)

// server is the API on its socket.
type server struct {
	d     *Daemon
	http  *http.Server
	ended chan error // what ended it, other than close
}

func (d *Daemon) listen() (*server, error) {
	path := SocketPath(d.cfg.RunDir)
	// The run directory is ours: a socket in it is of a daemon that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	err = os.Chmod(path, 0o660)
	if d.cfg.SocketGroup != 0 {
		err = errors.Join(err, os.Chown(path, -1, d.cfg.SocketGroup))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), l.Close())
	}
	s := &server{d: d, ended: make(chan error, 1)}
	s.http = &http.Server{
		Handler:           s.routes(),
		ConnContext:       withPeer,
		ReadHeaderTimeout: readTime,
		ReadTimeout:       readTime,
		WriteTimeout:      d.cfg.operationTime() + answerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	go func() {
		if err := s.http.Serve(newPeerListener(l, d.cfg.MaxConnections)); !errors.Is(err, http.ErrServerClosed) {
			s.ended <- err
		}
	}()
	return s, nil
}

// close lets answers under way end and removes the socket.
func (s *server) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), readTime)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("close socket: %w", err), s.http.Close())
	}
	return nil
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	const devices, one = "/" + APIVersion + "/devices", "/" + APIVersion + "/devices/{name}"
	mux.HandleFunc("GET /"+APIVersion+"/version", s.version)
	mux.Handle("GET /"+APIVersion+"/overview", s.guard(s.overview, false))
	mux.Handle("GET "+devices, s.guard(s.list, false))
	mux.Handle("GET "+one, s.guard(s.inspect, false))
	mux.Handle("POST "+devices, s.guard(s.create, true))
	mux.Handle("DELETE "+one, s.guard(s.delete, true))
	mux.Handle("PATCH "+one, s.guard(s.set, true))
	mux.Handle("POST "+one+"/freeze", s.guard(s.prepareFreeze, true))
	mux.Handle("POST "+one+"/freeze/{token}", s.guard(s.seal, true))
	mux.Handle("DELETE "+one+"/freeze/{token}", s.guard(s.cancelFreeze, true))
	mux.Handle("POST "+one+"/export", s.guard(s.prepareExport, true))
	mux.Handle("POST "+one+"/export/{token}", s.admit(true, s.export))
	mux.Handle("DELETE "+one+"/export/{token}", s.guard(s.cancelExport, true))
	mux.Handle("POST "+one+"/content", s.guard(s.prepareContent, true))
	mux.Handle("POST "+one+"/content/{token}", s.admit(true, s.deviceContent))
	mux.Handle("DELETE "+one+"/content/{token}", s.guard(s.cancelContent, true))
	mux.Handle("GET "+one+"/changed", s.admit(false, s.changed))
	mux.Handle("POST "+one+"/roots", s.guard(s.addRoot, true))
	mux.Handle("DELETE "+one+"/roots", s.guard(s.removeRoot, true))
	mux.Handle("POST "+one+"/roots/hydrate", s.guard(s.hydrateRoot, true))
	mux.Handle("POST "+one+"/roots/replicate", s.admit(true, s.replicateRoot))
	mux.Handle("POST "+one+"/warm", s.admit(true, s.warmCache))
	mux.Handle("GET "+one+"/latency", s.guard(s.latency, false))
	mux.Handle("POST /"+APIVersion+"/"+mapsPath, s.admit(true, s.measure))
	mux.Handle("DELETE /"+APIVersion+"/"+mapsPath, s.guard(s.endMeasure, true))
	mux.Handle("GET "+one+"/index", s.guard(s.index, false))
	mux.Handle("GET "+one+"/index/data", s.admit(true, s.bytes(maxIndexRead, s.readIndex)))
	mux.Handle("GET "+one+"/trace", s.admit(false, s.cacheTrace))
	const cached = "/" + APIVersion + "/cache"
	mux.Handle("GET "+cached, s.guard(s.cacheStats, false))
	mux.Handle("GET "+cached+"/curve", s.guard(s.cacheCurve, false))
	mux.Handle("PATCH "+cached, s.guard(s.setCache, true))
	mux.Handle("POST "+cached+"/drop", s.guard(s.dropCache, true))
	mux.Handle("DELETE /"+APIVersion+"/layers", s.guard(s.removeLayer, true))
	mux.Handle("POST /"+APIVersion+"/layers/move", s.admit(true, s.moveLayer))
	mux.Handle("POST /"+APIVersion+"/scrubs", s.admit(true, s.scrub))
	mux.Handle("POST /"+APIVersion+"/detaches", s.admit(true, s.detach))
	mux.Handle("GET /"+APIVersion+"/leases", s.guard(s.leases, false))
	const contents = "/" + APIVersion + "/contents"
	mux.Handle("POST "+contents, s.admit(true, s.openContent))
	mux.Handle("GET "+contents+"/{token}/data", s.admit(true, s.bytes(maxContentRead, s.readContent)))
	mux.Handle("POST "+contents+"/{token}/ranges", s.admit(true, s.readRanges))
	mux.Handle("GET "+contents+"/{token}/next", s.guard(s.nextContent, true))
	mux.Handle("GET "+contents+"/{token}/changed", s.admit(true, s.changedContent))
	mux.Handle("GET "+contents+"/{token}/prints", s.admit(true, s.printsContent))
	mux.Handle("POST /"+APIVersion+"/stores/grow", s.guard(s.growStore, true))
	mux.HandleFunc("POST /"+APIVersion+"/upgrade", s.upgrade)
	mux.HandleFunc("/", s.unknown)
	return s.limit(mux)
}

// limit bounds bodies and says the daemon's version in every answer.
func (s *server) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		w.Header().Set(VersionHeader, s.d.cfg.Version)
		next.ServeHTTP(w, r)
	})
}

// guard admits clients of this version, and to changes only users that may make them.
func (s *server) guard(do func(*http.Request) (any, error), changes bool) http.Handler {
	return s.admit(changes, func(w http.ResponseWriter, r *http.Request) {
		out, err := do(r)
		if err != nil {
			s.fail(w, Explain(err))
			return
		}
		s.answer(w, http.StatusOK, out)
	})
}

// admit is guard for calls that answer by themselves.
func (s *server) admit(changes bool, do http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkVersions(r.Header.Get(VersionHeader), s.d.cfg.Version); err != nil {
			s.fail(w, err)
			return
		}
		p, ok := peerOf(r.Context())
		if changes && (!ok || !p.mayChange()) {
			s.fail(w, fail(CodeForbidden, "run it as root", "user %d may list and inspect devices, not change them", p.uid))
			return
		}
		do(w, r)
	})
}

// checkVersions compares the versions of the two ends.
func checkVersions(client, daemon string) *Error {
	if client == daemon {
		return nil
	}
	if client == "" {
		client = "unknown"
	}
	if daemon == "" {
		daemon = "unknown"
	}
	return fail(CodeVersion,
		"restart the daemon with the binary that you run (devices in use stay, their I/O waits meanwhile), or use the daemon's own: /proc/PID/exe",
		"the daemon is of version %s, this program of version %s", daemon, client)
}

func (s *server) version(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, http.StatusOK, VersionInfo{Version: s.d.cfg.Version, API: APIVersion, PID: os.Getpid(), Upgrade: s.d.LastUpgrade()})
}

// settle waits a little for devices of an earlier daemon to be taken over, so that who
// restarts the daemon and looks sees the outcome, and who looks at a take-over that hangs sees that.
func (s *server) settle(ctx context.Context) {
	const patience = 5 * time.Second
	select {
	case <-s.d.restored:
	case <-ctx.Done():
	case <-time.After(patience):
	}
}

func (s *server) list(r *http.Request) (any, error) {
	s.settle(r.Context())
	return listBody{Devices: s.d.List()}, nil
}

// overview does not settle: who watches sees the take-over.
func (s *server) overview(*http.Request) (any, error) { return s.d.Overview(), nil }

func (s *server) inspect(r *http.Request) (any, error) {
	s.settle(r.Context())
	return s.d.Inspect(r.PathValue("name"))
}

func (s *server) create(r *http.Request) (any, error) {
	var req CreateRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.Create(r.Context(), req)
}

func (s *server) delete(r *http.Request) (any, error) {
	return s.d.Delete(r.Context(), r.PathValue("name"))
}

func (s *server) set(r *http.Request) (any, error) {
	var req SetRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.Set(r.Context(), r.PathValue("name"), req)
}

func (s *server) addRoot(r *http.Request) (any, error) {
	var req RootRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.AddRoot(r.Context(), r.PathValue("name"), req)
}

func (s *server) removeRoot(r *http.Request) (any, error) {
	var req RootRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.RemoveRoot(r.Context(), r.PathValue("name"), req)
}

func (s *server) hydrateRoot(r *http.Request) (any, error) {
	return s.d.HydrateRoot(r.Context(), r.PathValue("name"))
}

func (s *server) growStore(r *http.Request) (any, error) {
	var req GrowRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.GrowStore(r.Context(), req)
}

func (s *server) prepareFreeze(r *http.Request) (any, error) {
	var req FreezeRequest
	if err := decodeBody(r.Body, &req); err != nil {
		return nil, err
	}
	return s.d.PrepareFreeze(r.Context(), r.PathValue("name"), req)
}

func (s *server) seal(r *http.Request) (any, error) {
	return s.d.Seal(r.PathValue("name"), r.PathValue("token"))
}

func (s *server) cancelFreeze(r *http.Request) (any, error) {
	return struct{}{}, s.d.CancelFreeze(r.PathValue("name"), r.PathValue("token"))
}

func (s *server) unknown(w http.ResponseWriter, r *http.Request) {
	s.fail(w, fail(CodeBadRequest, "the API is in docs/cli.md", "no such call: %s %s", r.Method, r.URL.Path))
}

// decodeBody reads one JSON value, strictly.
func decodeBody(body io.Reader, into any) error {
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return fail(CodeTooLarge, "", "the request's body is over %d bytes", MaxBody)
	case err != nil:
		return fail(CodeBadRequest, "", "read request: %w", err)
	case dec.More():
		return fail(CodeBadRequest, "", "read request: more than one JSON value")
	}
	return nil
}

func (s *server) fail(w http.ResponseWriter, err *Error) {
	s.answer(w, statusOf(err.Code), errorBody{err})
}

func (s *server) answer(w http.ResponseWriter, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		s.d.log.Error("answer not encoded", "error", err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here means that the client has gone: nobody to tell.
	_, _ = w.Write(append(data, '\n'))
}
