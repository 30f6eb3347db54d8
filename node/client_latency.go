package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"coppice/ebpf"
)

// Latency reports how long the requests of a device took.
func (c *Client) Latency(ctx context.Context, name string) (LatencyReport, error) {
	var rep LatencyReport
	return rep, about("ask for the latency of "+name, c.send(ctx, http.MethodGet, devicePath(name, "latency"), nil, &rep, true))
}

// EndMeasure has the daemon measure nothing any more.
func (c *Client) EndMeasure(ctx context.Context) (MeasureReport, error) {
	var rep MeasureReport
	return rep, about("end measuring", c.send(ctx, http.MethodDelete, mapsPath, nil, &rep, true))
}

// Measure hands maps to the daemon, which measures with them. They stay the caller's, too.
func (c *Client) Measure(ctx context.Context, maps ebpf.Maps) (MeasureReport, error) {
	rep, err := c.measure(ctx, maps)
	return rep, about("hand eBPF maps to the daemon", err)
}

func (c *Client) measure(ctx context.Context, maps ebpf.Maps) (MeasureReport, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return MeasureReport{}, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://coppice/"+APIVersion+"/"+mapsPath, http.NoBody)
	if err != nil {
		return MeasureReport{}, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set(VersionHeader, c.version)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", mapsProtocol)
	if err := req.Write(conn); err != nil {
		return MeasureReport{}, fmt.Errorf("ask daemon: %w", err)
	}
	answers := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answers, req)
	if err != nil {
		return MeasureReport{}, fmt.Errorf("read the daemon's answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return MeasureReport{}, decodeAnswer(resp, &struct{}{})
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return MeasureReport{}, errors.New("the daemon's socket is no Unix socket")
	}
	if err := maps.Send(socket); err != nil {
		return MeasureReport{}, err
	}
	var answer mapsAnswer
	err = json.NewDecoder(io.LimitReader(answers, MaxBody)).Decode(&answer)
	switch {
	case err != nil:
		return MeasureReport{}, fmt.Errorf("read the daemon's answer: %w", err)
	case answer.Error != nil:
		return MeasureReport{}, answer.Error
	case answer.Report == nil:
		return MeasureReport{}, errors.New("the daemon's answer says nothing")
	}
	return *answer.Report, nil
}
