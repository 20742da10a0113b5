package owner

import (
	"fmt"
	"os"
	"sync"

	"github.com/ti-mo/conntrack"

	"servicetraceroute/trace"
)

// translations asks connection tracking by which addresses and ports this host's own
// sockets know what is translated before it leaves (SNAT, masquerading, DNAT on output),
// in the network namespace of the thread that opened it. Each question takes
// CAP_NET_ADMIN and some ten microseconds.
type translations struct {
	mu   sync.Mutex
	conn *conntrack.Conn
}

// trackingFile exists once the kernel can track connections at all. To ask without it
// would load the module.
const trackingFile = "/proc/sys/net/netfilter/nf_conntrack_count"

// Tracking reports whether the kernel tracks connections: only then can this host's own
// addresses and ports be others on the wire.
func Tracking() bool {
	_, err := os.Stat(trackingFile)
	return err == nil
}

// openTranslations returns nil where nothing is tracked.
func openTranslations() (*translations, error) {
	if !Tracking() {
		return nil, nil
	}
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("owner: open connection tracking: %w", err)
	}
	return &translations{conn: conn}, nil
}

// get looks up the connection one of whose tuples is key.
func (t *translations) get(key trace.FlowKey) (tracked, bool) {
	c, err := t.ask(key)
	return tracked{c.First, c.Answers}, err == nil // not tracked, or not ours to ask
}

// ask is get with the reason why not.
func (t *translations) ask(key trace.FlowKey) (c Connection, err error) {
	if t == nil {
		return c, errGone
	}
	q := conntrack.Flow{TupleOrig: conntrack.Tuple{
		IP: conntrack.IPTuple{SourceAddress: key.Src.Addr(), DestinationAddress: key.Dst.Addr()},
		Proto: conntrack.ProtoTuple{
			Protocol: protoTCP, SourcePort: key.Src.Port(), DestinationPort: key.Dst.Port(),
		},
	}}
	if key.Proto == trace.UDP {
		q.TupleOrig.Proto.Protocol = protoUDP
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.conn.Get(q)
	if err != nil {
		return c, err
	}
	of := func(u conntrack.Tuple) trace.FlowKey {
		return keyOf(u.Proto.Protocol, u.IP.SourceAddress, u.IP.DestinationAddress, u.Proto.SourcePort, u.Proto.DestinationPort)
	}
	c.First, c.Answers = of(f.TupleOrig), of(f.TupleReply)
	if p := f.ProtoInfo.TCP; p != nil {
		// struct nf_ct_tcp_flags: the flags, then a mask for those who set them.
		c.handshook(p.OriginalWindowScale, p.ReplyWindowScale, uint8(p.OriginalFlags>>8), uint8(p.ReplyFlags>>8))
	}
	return c, nil
}

// inside is the socket's key of a flow on the wire; ok only if it is another one.
func (t *translations) inside(wire trace.FlowKey) (socket trace.FlowKey, ok bool) {
	c, ok := t.get(turned(wire))
	if !ok {
		return socket, false
	}
	return c.inside(wire)
}

// outside is the key on the wire of a socket's flow; ok only if it is another one.
func (t *translations) outside(socket trace.FlowKey) (wire trace.FlowKey, ok bool) {
	c, ok := t.get(socket)
	if !ok {
		return wire, false
	}
	return c.outside(socket)
}

func (t *translations) close() error {
	if t == nil {
		return nil
	}
	return t.conn.Close()
}
