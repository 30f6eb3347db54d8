package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"coppice/ebpf"
)

// mapsProtocol is what the connection is upgraded to by who hands maps over.
const mapsProtocol = "coppice-maps"

// mapsPath is below the version of the API.
const mapsPath = "latency/maps"

func (s *server) latency(r *http.Request) (any, error) { return s.d.Latency(r.PathValue("name")) }

func (s *server) endMeasure(r *http.Request) (any, error) { return s.d.EndMeasure(r.Context()) }

// mapsAnswer is the last thing on a connection by which maps were handed over.
type mapsAnswer struct {
	Report *MeasureReport `json:"report,omitempty"`
	Error  *Error         `json:"error,omitempty"`
}

// measure takes maps, as descriptors that come on the same connection after the answer that says so, and answers again.
func (s *server) measure(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != mapsProtocol {
		s.fail(w, fail(CodeBadRequest, "use coppice ebpf load", "the connection is not to be upgraded to %s", mapsProtocol))
		return
	}
	conn, rest, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.fail(w, Explain(fmt.Errorf("take connection over: %w", err)))
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(readTime)) // fails for connections that are closed: so does what follows
	answer := mapsAnswer{}
	maps, err := receiveMaps(conn, rest, s.d.cfg.Version)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), readTime)
		defer cancel()
		var report MeasureReport
		report, err = s.d.Measure(ctx, maps)
		answer.Report = &report
	}
	if err != nil {
		answer = mapsAnswer{Error: Explain(err)}
	}
	_ = json.NewEncoder(conn).Encode(answer) // an error means that the client has gone: nobody to tell
}

func receiveMaps(conn net.Conn, rest *bufio.ReadWriter, version string) (ebpf.Maps, error) {
	peer, ok := conn.(*peerConn)
	var socket *net.UnixConn
	if ok {
		socket, ok = peer.Conn.(*net.UnixConn)
	}
	if !ok || rest.Reader.Buffered() > 0 {
		return ebpf.Maps{}, fail(CodeBadRequest, "use coppice ebpf load", "maps came before they were asked for")
	}
	_, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n\r\n", mapsProtocol, VersionHeader, version)
	if err != nil {
		return ebpf.Maps{}, err
	}
	maps, err := ebpf.Receive(socket)
	if errors.Is(err, ebpf.ErrNotOurs) {
		err = fail(CodeBadRequest, "load them with the program that the daemon is of: coppice ebpf load", "%w", err)
	}
	return maps, err
}
