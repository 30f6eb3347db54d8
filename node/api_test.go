package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/node"
)

// call sends a raw request and returns status and error.
func (r *rig) call(method, path, version string, body []byte) (int, node.Error) {
	r.t.Helper()
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("unix", node.SocketPath(r.cfg.RunDir))
		},
	}}
	req, err := http.NewRequest(method, "http://x"+path, bytes.NewReader(body))
	check(r.t, err)
	if version != "" {
		req.Header.Set(node.VersionHeader, version)
	}
	resp, err := c.Do(req)
	check(r.t, err)
	defer resp.Body.Close()
	var e struct{ Error node.Error }
	check(r.t, json.NewDecoder(resp.Body).Decode(&e))
	return resp.StatusCode, e.Error
}

func TestAPIRefusals(t *testing.T) {
	r := newRig(t)
	r.start()
	large := fmt.Appendf(nil, `{"name":%q}`, strings.Repeat("x", node.MaxBody))
	for _, c := range []struct {
		name, method, path, version, body string
		status                            int
		code                              node.Code
	}{
		{"body over the limit", "POST", "/v1/devices", "test", string(large), 413, node.CodeTooLarge},
		{"no JSON", "POST", "/v1/devices", "test", "name=x", 400, node.CodeBadRequest},
		{"unknown field", "POST", "/v1/devices", "test", `{"nome":"x"}`, 400, node.CodeBadRequest},
		{"two values", "POST", "/v1/devices", "test", `{}{}`, 400, node.CodeBadRequest},
		{"empty body", "POST", "/v1/devices", "test", "", 400, node.CodeBadRequest},
		{"no version", "GET", "/v1/devices", "", "", 412, node.CodeVersion},
		{"other version", "DELETE", "/v1/devices/x", "0.0.1", "", 412, node.CodeVersion},
		{"unknown call", "GET", "/v2/devices", "test", "", 400, node.CodeBadRequest},
		{"unknown method", "PUT", "/v1/devices/x", "test", "", 400, node.CodeBadRequest},
		{"no device", "GET", "/v1/devices/x", "test", "", 404, node.CodeNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, e := r.call(c.method, c.path, c.version, []byte(c.body))
			if status != c.status || e.Code != c.code || e.Message == "" {
				t.Errorf("status %d, %s: %s", status, e.Code, e.Message)
			}
		})
	}
}

func TestVersionsDiffer(t *testing.T) {
	r := newRig(t)
	r.start()
	old := node.NewClient(r.cfg.RunDir, "0.0.1")
	_, err := old.List(context.Background())
	if node.CodeOf(err) != node.CodeVersion || !strings.Contains(err.Error(), "0.0.1") || !strings.Contains(err.Error(), "test") || node.HintOf(err) == "" {
		t.Fatalf("%s: %v", node.CodeOf(err), err)
	}
	v, err := old.Version(context.Background())
	if err != nil || v.Version != "test" || v.PID != os.Getpid() {
		t.Errorf("version across versions: %+v, %v", v, err)
	}
}

// A daemon from before the handshake answers without a version.
func TestDaemonWithoutVersion(t *testing.T) {
	r := newRig(t)
	check(t, os.MkdirAll(r.cfg.RunDir, 0o750))
	l, err := net.Listen("unix", node.SocketPath(r.cfg.RunDir))
	check(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { check(t, srv.Close()) })
	if _, err := r.client().List(context.Background()); node.CodeOf(err) != node.CodeVersion {
		t.Error(err)
	}
}

func TestNoDaemon(t *testing.T) {
	r := newRig(t)
	c := r.client()
	c.Wait = 10 * time.Millisecond
	if _, err := c.List(context.Background()); node.CodeOf(err) != node.CodeNoDaemon || node.HintOf(err) == "" {
		t.Error(err)
	}
}

// A client that comes right after the daemon was started waits for its socket.
func TestClientWaitsForDaemonOnItsWay(t *testing.T) {
	r := newRig(t)
	answer := make(chan error, 1)
	go func() {
		c := r.client()
		c.Wait = time.Minute
		_, err := c.List(context.Background())
		answer <- err
	}()
	r.start()
	check(t, <-answer)
}

func TestSocketPermissions(t *testing.T) {
	r := newRig(t)
	r.start()
	for path, want := range map[string]os.FileMode{r.cfg.RunDir: 0o750, node.SocketPath(r.cfg.RunDir): 0o660} {
		st, err := os.Stat(path)
		check(t, err)
		if got := st.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, not %o", path, got, want)
		}
	}
}

const helperSocket = "COPPICE_TEST_SOCKET"

// TestMain makes the test binary a client, or the program, when it is started as one.
func TestMain(m *testing.M) {
	if path := os.Getenv(helperSocket); path != "" {
		rawClient(path)
		os.Exit(0)
	}
	if os.Args[0] == programName {
		os.Exit(beProgram())
	}
	os.Exit(m.Run())
}

// rawClient prints the status lines of one harmless and one changing call.
func rawClient(path string) {
	for _, call := range []string{"GET /v1/devices", "POST /v1/devices", "DELETE /v1/devices/web1"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\nCoppice-Version: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", call)
		line, _ := bufio.NewReader(c).ReadString('\n')
		fmt.Print(call, ": ", line)
		c.Close()
	}
}

// Another user may look, where the socket lets him, and change nothing.
func TestOtherUsersChangeNothing(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	self, err := os.Executable()
	check(t, err)
	want := "DELETE /v1/devices/web1: HTTP/1.1 200 OK"
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), helperSocket+"="+node.SocketPath(r.cfg.RunDir))
	if os.Geteuid() == 0 { // only root can become another user
		want = "DELETE /v1/devices/web1: HTTP/1.1 403 Forbidden"
		cmd = asNobody(t, r, self)
	}
	out, err := cmd.CombinedOutput()
	check(t, err)
	if !strings.Contains(string(out), "GET /v1/devices: HTTP/1.1 200 OK") || !strings.Contains(string(out), want) {
		t.Errorf("answers:\n%s", out)
	}
}

// asNobody runs a copy of the test binary, from a place that others may enter, as user nobody.
func asNobody(t *testing.T, r *rig, self string) *exec.Cmd {
	t.Helper()
	data, err := os.ReadFile(self)
	check(t, err)
	program := r.dir + "/client"
	check(t, os.WriteFile(program, data, 0o755))
	for path, mode := range map[string]os.FileMode{r.dir: 0o755, r.cfg.RunDir: 0o755, node.SocketPath(r.cfg.RunDir): 0o666} {
		check(t, os.Chmod(path, mode))
	}
	const nobody = 65534
	cmd := exec.Command(program)
	cmd.Env = []string{helperSocket + "=" + node.SocketPath(r.cfg.RunDir)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

// A user with many open connections is cut off; the daemon goes on.
func TestConnectionsPerUserAreBounded(t *testing.T) {
	r := newRig(t)
	r.cfg.MaxConnections = 4
	r.start()
	path := node.SocketPath(r.cfg.RunDir)
	var open []net.Conn
	for range 4 {
		c, err := net.Dial("unix", path)
		check(t, err)
		open = append(open, c)
	}
	// Connections are accepted in order: the fifth is the one that is closed.
	fifth, err := net.Dial("unix", path)
	check(t, err)
	defer fifth.Close()
	check(t, fifth.SetReadDeadline(time.Now().Add(2*time.Minute)))
	if n, err := fifth.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("fifth connection: %d bytes, %v", n, err)
	}
	for _, c := range open {
		c.Close()
	}
	r.log.waitFor(t, func() bool { _, err := r.client().List(context.Background()); return err == nil })
}
