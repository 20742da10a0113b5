//go:build linux

package servicetraceroute_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/trace"
)

// kind is how two programs talk over UDP: what each says first, then over and over.
type kind struct {
	name         string
	port         uint16 // of the server
	local        uint16 // of the client; 0: any
	first, reply []byte
	up, down     pace
	reason       trace.Reason // why it is not probed; 0: it is
}

// pace is datagrams of one size that begin with the same bytes.
type pace struct {
	begin []byte
	size  int
	every time.Duration // 0: none
}

// talker is one end of a flow. It knows what its peer may say.
type talker struct {
	conn    *net.UDPConn
	heard   int
	strange [][]byte
	errors  []error
}

// hear reads until the socket's deadline. after is called with each datagram that came.
func (k *talker) hear(known func([]byte) bool, after func(from netip.AddrPort)) {
	b := make([]byte, 2000)
	for {
		n, from, err := k.conn.ReadFromUDPAddrPort(b)
		switch {
		case err == nil && known(b[:n]):
			k.heard++
			after(from)
		case err == nil:
			k.strange = append(k.strange, bytes.Clone(b[:n]))
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			k.errors = append(k.errors, err)
			return
		}
	}
}

func (p pace) datagram() []byte {
	return append(bytes.Clone(p.begin), make([]byte, p.size-len(p.begin))...)
}

func (p pace) is(b []byte) bool {
	return p.every > 0 && len(b) == p.size && bytes.HasPrefix(b, p.begin)
}

// say sends at a pace until ctx ends.
func (p pace) say(ctx context.Context, send func([]byte) error) (err error) {
	if p.every == 0 {
		return nil
	}
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
			if e := send(p.datagram()); e != nil {
				err = e
			}
		}
	}
}

// open opens both ends.
func (k kind) open(t *testing.T, client, server *lab.Node, ipv6 bool) (near, far *talker) {
	t.Helper()
	network := "udp4"
	if ipv6 {
		network = "udp6"
	}
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(server.Addr(ipv6), k.port))
	in := func(n *lab.Node, f func() (*net.UDPConn, error)) *talker {
		x := &talker{}
		if err := n.Do(func() (err error) { x.conn, err = f(); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = x.conn.Close() })
		return x
	}
	far = in(server, func() (*net.UDPConn, error) { return net.ListenUDP(network, to) })
	near = in(client, func() (*net.UDPConn, error) { return net.DialUDP(network, &net.UDPAddr{Port: int(k.local)}, to) })
	return near, far
}

// talk lets both ends talk for so long.
func (k kind) talk(t *testing.T, near, far *talker, lasts time.Duration) {
	for _, x := range []*talker{near, far} {
		_ = x.conn.SetReadDeadline(time.Now().Add(lasts + 500*time.Millisecond))
	}
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	wg.Go(func() {
		far.hear(func(b []byte) bool { return bytes.Equal(b, k.first) || k.up.is(b) }, func(from netip.AddrPort) {
			once.Do(func() {
				if k.reply != nil {
					_, _ = far.conn.WriteToUDPAddrPort(k.reply, from)
				}
				wg.Go(func() {
					if err := k.down.say(ctx, func(b []byte) error { _, err := far.conn.WriteToUDPAddrPort(b, from); return err }); err != nil {
						t.Errorf("server: %v", err)
					}
				})
			})
		})
	})
	wg.Go(func() {
		near.hear(func(b []byte) bool { return bytes.Equal(b, k.reply) || k.down.is(b) }, func(netip.AddrPort) {})
	})
	if _, err := near.conn.Write(k.first); err != nil {
		t.Error(err)
	}
	if err := k.up.say(ctx, func(b []byte) error { _, err := near.conn.Write(b); return err }); err != nil {
		t.Errorf("client: %v", err)
	}
	wg.Wait()
}

// TestUDPKinds: media that goes one way with reports the other, a tunnel like WireGuard's, a
// game, and what nobody answers. Each end hears what the other said and nothing else.
func TestUDPKinds(t *testing.T) {
	t.Parallel()
	f := newBareField(t, chain(5), servicetraceroute.Config{})
	client, server := f.lab.Node("client"), f.lab.Node("server")
	rtp := []byte{0x80, 0x60, 1, 2}
	kinds := []kind{
		{name: "media", port: 19305, first: []byte("hello"), up: pace{[]byte{0x81, 0xc9}, 60, 500 * time.Millisecond}, down: pace{rtp, 1100, 20 * time.Millisecond}},
		{name: "media that leaves", port: 5004, first: rtp, reply: []byte{0x81, 0xc8}, up: pace{rtp, 1100, 20 * time.Millisecond}, down: pace{[]byte{0x81, 0xc9}, 60, 500 * time.Millisecond}},
		{
			name: "tunnel", port: 51820, local: 51820, first: append([]byte{1, 0, 0, 0}, make([]byte, 144)...), reply: append([]byte{2, 0, 0, 0}, make([]byte, 88)...),
			up: pace{[]byte{4, 0, 0, 0}, 1312, 8 * time.Millisecond}, down: pace{[]byte{4, 0, 0, 0}, 96, 25 * time.Millisecond},
		},
		{name: "game", port: 27015, first: []byte{0xff, 0xff, 0xff, 0xff, 'T'}, reply: []byte("I"), up: pace{[]byte{7}, 40, 33 * time.Millisecond}, down: pace{[]byte{9}, 300, 12 * time.Millisecond}},
		{name: "unanswered", port: 514, first: []byte("<34>"), up: pace{[]byte("<34>"), 200, 50 * time.Millisecond}, reason: trace.ReasonNoInboundTTL},
	}
	stop := f.watch(servicetraceroute.Selection{Protos: []trace.Proto{trace.UDP}})
	type pair struct{ near, far *talker }
	flows := map[string]pair{}
	var wg sync.WaitGroup
	for _, k := range kinds {
		for _, ipv6 := range []bool{false, true} {
			near, far := k.open(t, client, server, ipv6)
			flows[near.conn.LocalAddr().String()+k.name] = pair{near, far}
			wg.Go(func() { k.talk(t, near, far, 7*time.Second) })
		}
	}
	wg.Wait()
	got := stop()
	f.judge(f.truth(), got.traces)
	for _, k := range kinds {
		traced := 0
		for _, tr := range got.traces {
			if tr.Flow.Dst.Port() != k.port {
				continue
			}
			traced++
			want := trace.StopFence
			if k.reason != 0 {
				want = trace.StopRefused
			}
			if tr.Stop != want || tr.Reason != k.reason || k.reason == 0 && len(tr.Hops) != 4 {
				t.Errorf("%s: %v %s", k.name, tr.Reason, describe(tr))
			}
			for _, h := range tr.Hops {
				if len(h.Replies) == 0 {
					t.Errorf("%s: TTL %d is silent", k.name, h.TTL)
				}
			}
			both := flows[tr.Flow.Src.String()+k.name]
			for end, x := range map[string]*talker{"client": both.near, "server": both.far} {
				if len(x.strange)+len(x.errors) > 0 || x.heard == 0 && (end == "server" || k.reason == 0) {
					t.Errorf("%s: the %s heard %d, strange %x, errors %v", k.name, end, x.heard, x.strange, x.errors)
				}
			}
		}
		if traced != 2 {
			t.Errorf("%s: %d traces of 2 flows", k.name, traced)
		}
	}
}
