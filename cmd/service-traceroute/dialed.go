package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go/http3"

	"servicetraceroute/internal/output"
)

// dialed is the connection that dial made.
type dialed struct {
	conn  net.Conn  // *courteous, *tls.Conn over one, or the socket of quic
	quic  *quicConn // nil: TCP
	to    target
	plain bool
	asked bool // a request is made; got is closed when it is over
	got   chan struct{}
	took  time.Duration
}

// String describes the connection in a few words.
func (c *dialed) String() string {
	kind := "TCP"
	if s, ok := c.conn.(*tls.Conn); ok {
		state := s.ConnectionState()
		kind = tls.VersionName(state.Version)
		if state.NegotiatedProtocol != "" {
			kind += ", " + state.NegotiatedProtocol
		}
	}
	if c.quic != nil {
		state := c.quic.ConnectionState()
		kind = fmt.Sprintf("QUIC %v, %s", state.Version, state.TLS.NegotiatedProtocol)
	}
	return fmt.Sprintf("%v to %v, %s, in %v", c.conn.LocalAddr(), c.conn.RemoteAddr(), kind, c.took.Round(time.Millisecond/10))
}

// transport makes requests over the connection, of whatever kind it is.
func (c *dialed) transport() http.RoundTripper {
	if c.quic != nil {
		return new(http3.Transport).NewClientConn(c.quic.Conn)
	}
	given := false
	give := func(context.Context, string, string) (net.Conn, error) {
		if given {
			return nil, errors.New("the server closed the connection")
		}
		given = true
		return c.conn, nil
	}
	return &http.Transport{DialContext: give, DialTLSContext: give, ForceAttemptHTTP2: true}
}

// get sends a request over the connection and reads the answer away.
func (c *dialed) get(ctx context.Context, stderr io.Writer) {
	defer close(c.got)
	u := url.URL{Scheme: "https", Host: c.to.String(), Path: "/"}
	if c.plain {
		u.Scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil {
		var resp *http.Response
		if resp, err = c.transport().RoundTrip(req); err == nil {
			fmt.Fprintf(stderr, "answer: %s\n", output.Escape(resp.Proto+" "+resp.Status))
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(stderr, "request: %s\n", output.Escape(err.Error()))
	}
}

// answerTimeout is how long an answer may outlast the trace.
const answerTimeout = 10 * time.Second

// answered waits for the answer to a request, which on a short path takes longer than
// the trace.
func (c *dialed) answered(ctx context.Context) {
	if !c.asked {
		return
	}
	select {
	case <-c.got:
	case <-ctx.Done():
	case <-time.After(answerTimeout):
	}
}

// close ends the connection as an application should.
func (c *dialed) close() {
	if c.quic != nil {
		c.quic.close()
	} else {
		_ = c.conn.Close()
	}
	if c.asked {
		<-c.got
	}
}

// courteous is a connection whose Close sends a FIN, and not a reset when something
// was not read or still comes. When hurry has ended nobody waits for the peer any
// more than a moment, neither to close nor to take what is written.
type courteous struct {
	*net.TCPConn
	hurry context.Context
	relax func() bool // ends the watching of hurry
	once  sync.Once
	err   error
}

const (
	farewell = time.Second            // how long the peer may take to close its side
	moment   = 200 * time.Millisecond // the same, and for each write, in a hurry
)

func newCourteous(hurry context.Context, conn *net.TCPConn) *courteous {
	c := &courteous{TCPConn: conn, hurry: hurry}
	c.relax = context.AfterFunc(hurry, func() {
		_ = c.TCPConn.SetDeadline(time.Now().Add(moment)) // of what is being waited for just now
	})
	return c
}

// SetWriteDeadline implements net.Conn: TLS wants 5 s for its farewell.
func (c *courteous) SetWriteDeadline(t time.Time) error {
	err := c.TCPConn.SetWriteDeadline(t)
	if err != nil || c.hurry.Err() == nil {
		return err
	}
	if soon := time.Now().Add(moment); t.IsZero() || t.After(soon) {
		return c.TCPConn.SetWriteDeadline(soon)
	}
	return nil
}

// Close implements net.Conn.
func (c *courteous) Close() error {
	c.once.Do(func() {
		defer c.relax()
		if c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(farewell)) == nil {
			relax := context.AfterFunc(c.hurry, func() { _ = c.SetReadDeadline(time.Now().Add(moment)) })
			_, _ = io.Copy(io.Discard, c.TCPConn)
			relax()
		}
		c.err = c.TCPConn.Close()
	})
	return c.err
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
