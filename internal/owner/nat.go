package owner

import (
	"net/netip"

	"servicetraceroute/trace"
)

// tracked is one connection as connection tracking knows it: the tuple of its first
// packet before translation, and that of the answers. Without translation one is the
// other turned round.
type tracked struct{ orig, reply trace.FlowKey }

// Connection is what connection tracking knows of a flow, whoever its ends are.
type Connection struct {
	First   trace.FlowKey // its first packet, as that came
	Answers trace.FlowKey // as they come
	// Handshake is that of the first packet's sender; known only of TCP, if the handshake
	// was seen and both ends scale their windows.
	Handshake      Handshake
	KnowsHandshake bool
}

// What conntrack remembers of the options of one side's SYN: IP_CT_TCP_FLAG_…
// (linux/netfilter/nf_conntrack_tcp.h).
const (
	flagWindowScale = 1
	flagSACK        = 2
)

// handshook takes in the scales and flags of the sender's and of the answering side.
func (c *Connection) handshook(scale, peer uint8, flags, peerFlags uint8) {
	both := flags & peerFlags
	c.KnowsHandshake = both&flagWindowScale != 0
	if c.KnowsHandshake {
		c.Handshake = Handshake{LocalScale: scale, PeerScale: peer, SACK: both&flagSACK != 0}
	}
}

// turned is the same flow seen from its other end.
func turned(k trace.FlowKey) trace.FlowKey {
	return trace.FlowKey{Proto: k.Proto, Src: k.Dst, Dst: k.Src}
}

// inside is what the socket of this host calls a connection that is on the wire as
// wire, seen from this host. Packets arrive as wire turned round: as answers where this
// host opened the connection, then the socket's is the original tuple, else the
// answers' one.
func (t tracked) inside(wire trace.FlowKey) (trace.FlowKey, bool) {
	switch turned(wire) {
	case t.reply:
		return t.orig, t.orig != wire
	case t.orig:
		return t.reply, t.reply != wire
	}
	return trace.FlowKey{}, false
}

// outside is the other way round: the tuple on the wire of a connection that the
// socket calls socket.
func (t tracked) outside(socket trace.FlowKey) (trace.FlowKey, bool) {
	switch socket {
	case t.orig:
		wire := turned(t.reply)
		return wire, wire != socket
	case t.reply:
		wire := turned(t.orig)
		return wire, wire != socket
	}
	return trace.FlowKey{}, false
}

// keyOf makes a key of what connection tracking tells; other protocols give the zero key.
func keyOf(proto uint8, src, dst netip.Addr, sport, dport uint16) trace.FlowKey {
	k := trace.FlowKey{Src: netip.AddrPortFrom(src.Unmap(), sport), Dst: netip.AddrPortFrom(dst.Unmap(), dport)}
	switch proto {
	case protoTCP:
		k.Proto = trace.TCP
	case protoUDP:
		k.Proto = trace.UDP
	default:
		return trace.FlowKey{}
	}
	return k
}
