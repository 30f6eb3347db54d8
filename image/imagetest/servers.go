// Package imagetest runs real servers of images for tests: Debian's docker-registry and nginx. They listen on this machine's loopback only, keep
// their files below the test's directory, and end with the test.
package imagetest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Serve starts a server of Debian's on this machine and waits until it answers at an address.
func Serve(t *testing.T, addr, program string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%v: make deps installs it", err)
	}
	var said bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	for range 200 {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", program, said.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("%s does not answer at %s", program, addr)
}

// FreeAddr returns an address of this machine that nobody listens at.
func FreeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Nginx starts nginx with a location, in whose text WORK is a directory of its own.
func Nginx(t *testing.T, location string) (addr string) {
	t.Helper()
	return NginxServer(t, "server { listen ADDR; location / { "+location+" } }")
}

// NginxServer starts nginx with a server, in whose text ADDR is its address and WORK a directory of its own.
func NginxServer(t *testing.T, server string) (addr string) {
	t.Helper()
	addr = FreeAddr(t)
	work := t.TempDir()
	user := "" // whose workers may read the directory of a test
	if os.Getuid() == 0 {
		user = "user root;"
	}
	config := writeFile(t, filepath.Join(work, "nginx.conf"), strings.ReplaceAll(fmt.Sprintf(`
%s daemon off; pid WORK/pid; error_log WORK/error.log; worker_processes 1;
events {}
http {
	access_log off; client_body_temp_path WORK/a; proxy_temp_path WORK/b; fastcgi_temp_path WORK/c; uwsgi_temp_path WORK/d; scgi_temp_path WORK/e;
	proxy_cache_path WORK/cache keys_zone=blobs:1m;
	%s
}`, user, strings.ReplaceAll(server, "ADDR", addr)), "WORK", work))
	Serve(t, addr, "nginx", "-c", config)
	return addr
}

// RegistryOptions says how a registry is run. The zero value is one without password and TLS.
type RegistryOptions struct {
	Htpasswd  string // users and passwords in the form of htpasswd
	Cert, Key string // paths of a certificate and its key, in PEM
}

// Registry starts docker-registry.
func Registry(t *testing.T, o RegistryOptions) (addr string) {
	t.Helper()
	dir := t.TempDir()
	addr = FreeAddr(t)
	web := "addr: " + addr
	if o.Cert != "" {
		web += fmt.Sprintf(", tls: {certificate: %s, key: %s}", o.Cert, o.Key)
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\nhttp: {%s}\n", dir, web)
	if o.Htpasswd != "" {
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", writeFile(t, dir+"/htpasswd", o.Htpasswd))
	}
	Serve(t, addr, "docker-registry", "serve", writeFile(t, dir+"/config.yml", config))
	return addr
}

// Skopeo runs Debian's skopeo copy.
func Skopeo(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("skopeo", append([]string{"--insecure-policy", "copy"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo copy %v: %v\n%s", args, err, out)
	}
}
