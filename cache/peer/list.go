package peer

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// MaxPeers is how many peers a list may have.
	MaxPeers = 1024
	// maxList is the length of the largest file of a list, in bytes.
	maxList = 256 << 10
	maxURL  = 256
)

var hostPattern = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?$`)

// ParseURL returns the one way to write https://HOST[:PORT]. It is what peers are ordered by. http is taken where insecure is set.
func ParseURL(text string, insecure bool) (string, error) {
	fail := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("%.80q is not https://HOST:PORT: "+format+": %w", append(append([]any{text}, args...), ErrBadList)...)
	}
	if len(text) > maxURL {
		return fail("longer than %d bytes", maxURL)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return fail("not a URL")
	case u.Scheme == "http" && !insecure:
		return fail("peers speak TLS")
	case u.Scheme != "https" && u.Scheme != "http":
		return fail("not https")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Trim(u.Path, "/") != "" || u.Opaque != "":
		return fail("only host and port")
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
		host = ip.String()
	} else if !hostPattern.MatchString(host) {
		return fail("no host")
	}
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fail("no such port")
	}
	return u.Scheme + "://" + net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// ParseList reads a list of peers: a URL a line, where # begins a comment. An empty one is a list too.
func ParseList(data []byte, insecure bool) ([]string, error) {
	if len(data) > maxList {
		return nil, fmt.Errorf("longer than %d bytes: %w", maxList, ErrBadList)
	}
	var urls []string
	seen := map[string]int{}
	line := 0
	for text := range strings.Lines(string(data)) {
		line++
		text, _, _ = strings.Cut(text, "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		u, err := ParseURL(text, insecure)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		if first, ok := seen[u]; ok {
			return nil, fmt.Errorf("line %d: %s is in line %d already: %w", line, u, first, ErrBadList)
		}
		if seen[u] = line; len(urls) == MaxPeers {
			return nil, fmt.Errorf("line %d: more than %d peers: %w", line, MaxPeers, ErrBadList)
		}
		urls = append(urls, u)
	}
	return urls, nil
}

// readList returns what a file says.
func readList(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe is not waited for
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file: %w", path, ErrBadList)
	}
	return io.ReadAll(io.LimitReader(f, maxList+1))
}
