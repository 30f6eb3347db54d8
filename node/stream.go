package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// stream answers with one JSON value per line for as long as it takes. The deadline is for each line.
type stream struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	began bool
}

// newStream is called when the request's body has been read.
func newStream(w http.ResponseWriter) (*stream, error) {
	s := &stream{w: w, rc: http.NewResponseController(w)}
	// The deadline of the request's body would end the request's context later.
	if err := s.rc.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	return s, nil
}

// emit sends one line. It fails where the client has gone or does not read.
func (s *stream) emit(line any) error {
	data, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	if err := s.rc.SetWriteDeadline(time.Now().Add(answerTime)); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if !s.began {
		s.w.Header().Set("Content-Type", "application/x-ndjson")
		s.began = true
	}
	if _, err := s.w.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return s.rc.Flush()
}

// end sends the error that ended the stream, if any, as a line or as the whole answer.
func (s *server) end(st *stream, err error) {
	switch {
	case err == nil:
	case st.began:
		_ = st.emit(errorBody{Explain(err)}) // the client may have gone: nobody to tell
	default:
		_ = st.rc.SetWriteDeadline(time.Now().Add(answerTime))
		s.fail(st.w, Explain(err))
	}
}

// receive sends a request, with in as its body unless nil, and calls line for each line of the answer. A line with an error ends it.
func receive[T any](ctx context.Context, c *Client, method, path string, in any, line func(T) error) error {
	resp, err := c.request(ctx, method, path, in, true)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return decodeAnswer(resp, nil)
	}
	dec := json.NewDecoder(resp.Body)
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		var failed errorBody
		var v T
		if err := json.Unmarshal(raw, &failed); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		if failed.Error != nil {
			return failed.Error
		}
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		if err := line(v); err != nil {
			return err
		}
	}
}
