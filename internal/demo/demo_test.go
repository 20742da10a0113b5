//go:build linux

package demo

import (
	"bytes"
	"testing"
	"time"

	"servicetraceroute/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// The demo shows a complete path of a real download within the time that its help
// promises, and says something at once.
func TestDemo(t *testing.T) {
	labtest.Require(t)
	labtest.Exclusive(t)
	talk := &clocked{start: time.Now()}
	res, err := Run(t.Context(), talk)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(talk.start); took > 20*time.Second || talk.first > time.Second {
		t.Errorf("first line after %v, the end after %v", talk.first, took)
	}
	var b bytes.Buffer
	if err := res.Write(&b); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b.String())
	if res.Failed() || !res.Trace.Complete || len(res.Trace.Hops) != 7 || res.Bytes != downloadBytes {
		t.Errorf("failed = %v, complete = %v, %d hops, %d bytes", res.Failed(), res.Trace.Complete, len(res.Trace.Hops), res.Bytes)
	}
	if n := len(res.UDP); n != 6 {
		t.Errorf("UDP got to TTL %d, the firewall is at 6", n)
	}
	if n := len(res.TCP); n != 7 || !res.TCP[n-1].Reached {
		t.Errorf("TCP: %v", res.TCP)
	}
}

// clocked notes when the first line came.
type clocked struct {
	start time.Time
	first time.Duration
}

// Write implements io.Writer.
func (c *clocked) Write(b []byte) (int, error) {
	if c.first == 0 {
		c.first = time.Since(c.start)
	}
	return len(b), nil
}
