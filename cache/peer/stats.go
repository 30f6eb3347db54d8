package peer

import "time"

// Stats is how a client and its peers do.
type Stats struct {
	Path  string      `json:"path,omitempty"`  // of the list
	Error string      `json:"error,omitempty"` // why the list cannot be used as it is now
	Self  string      `json:"self,omitempty"`  // this node's URL, if it is in the list
	Peers []PeerStats `json:"peers"`
}

// PeerStats is how one peer does, since it came into the list.
type PeerStats struct {
	URL      string        `json:"url"`
	State    State         `json:"state"`
	Since    time.Time     `json:"since"`
	Error    string        `json:"error,omitempty"` // the last one
	Requests int64         `json:"requests"`
	Hits     int64         `json:"hits"`
	Misses   int64         `json:"misses"`
	Errors   int64         `json:"errors"`
	Busy     int64         `json:"busy"` // times that it had too much to do
	Lies     int64         `json:"lies"`
	Bytes    int64         `json:"bytes"`
	Latency  time.Duration `json:"latency_ns"` // moving average of hits; 0 where there was none
}

// Stats returns how the client and its peers do. This node itself is not among them.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{Path: c.path, Peers: []PeerStats{}}
	if c.listErr != nil {
		s.Error = c.listErr.Error()
	}
	if c.hasSelf() {
		s.Self = c.selfURL
	}
	for _, r := range c.list {
		if r.url == s.Self {
			continue
		}
		n := r.count
		p := PeerStats{
			URL: r.url, State: r.state, Since: r.since, Requests: n.requests, Hits: n.hits, Misses: n.misses, Errors: n.errors,
			Busy: n.busy, Lies: n.lies, Bytes: n.bytes, Latency: n.latency,
		}
		if r.err != nil {
			p.Error = r.err.Error()
		}
		s.Peers = append(s.Peers, p)
	}
	return s
}
