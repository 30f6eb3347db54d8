package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"coppice/certs"
)

// ServerOptions says who is served.
type ServerOptions struct {
	// TLS has the authorities whose certificates clients have to show, and the server's own certificate. nil means neither TLS nor any check, for tests
	// and for networks that are trusted.
	TLS *certs.Files
	// MaxConnections is how many connections there may be. 0 means 1024. For one more, the one is closed that has been idle for longest, or the new one where none is.
	MaxConnections int
	// Log gets what goes wrong with connections, at level debug. nil means [slog.Default].
	Log *slog.Logger
}

// Server answers nodes over mutual TLS.
type Server struct {
	http  *http.Server
	addr  net.Addr
	ended chan error
}

const (
	headerTime   = 5 * time.Second
	idleTime     = 5 * time.Minute
	shutdownTime = 5 * time.Second
)

// Listen begins to serve at HOST:PORT. The server is closed by [Server.Close].
func Listen(addr string, h http.Handler, o ServerOptions) (*Server, error) {
	if o.MaxConnections == 0 {
		o.MaxConnections = 1024
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	config, err := o.tls()
	if err != nil {
		return nil, fmt.Errorf("serve at %s: %w", addr, err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve: %w", err)
	}
	s := &Server{addr: l.Addr(), ended: make(chan error, 1)}
	s.http = &http.Server{
		Handler:           withoutBodies(h),
		ReadHeaderTimeout: headerTime, // the handshake, too
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	bounded := &boundedListener{Listener: l, most: o.MaxConnections}
	s.http.ConnState = bounded.changed
	if l = bounded; config != nil {
		l = tls.NewListener(l, config)
	}
	go func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.ended <- err
		}
	}()
	return s, nil
}

// withoutBodies refuses requests that bring something. Nothing of it is waited for.
func withoutBodies(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // a connection has one
			w.Header().Set("Connection", "close")
			answer(w, http.StatusRequestEntityTooLarge)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// tls returns what asks the files anew for each connection.
func (o ServerOptions) tls() (*tls.Config, error) {
	if o.TLS == nil {
		return nil, nil
	}
	if content, _ := o.TLS.Current(); content.CA == nil || content.Pair == nil {
		return nil, errors.New("certificates of an authority, and one of the server with its key, are needed")
	}
	config := certs.Derive(o.TLS, serverTLS, nil)
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return config.Current(), nil
	}}, nil
}

func serverTLS(content *certs.Content) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: content.Authorities(),
		Certificates: []tls.Certificate{*content.Pair}, // one that has expired, too: clients say best what is wrong with it
		// What was agreed on before a certificate was changed does not count after.
		SessionTicketsDisabled: true,
	}
}

// Addr returns where the server is.
func (s *Server) Addr() net.Addr { return s.addr }

// Ended gives the error that has ended the server without [Server.Close].
func (s *Server) Ended() <-chan error { return s.ended }

// Close lets answers under way end, for a few seconds, and ends all connections.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}
