//go:build linux

package observe

import (
	"context"
	"net/netip"
	"time"

	"servicetraceroute/internal/lab/node"
)

// Config says what an observer keeps. The zero values are the defaults.
type Config struct {
	// TTL is the highest TTL, as seen here, of what looks like a probe; 0: 32.
	// Every such TCP or UDP packet is kept.
	TTL uint8
	// AllACKs keeps every TCP segment without payload, whatever its TTL.
	AllACKs bool
	// Sample keeps one of so many of the other packets; 0: 32. Those with little
	// payload and those that open or end a connection are always kept.
	Sample int
	// Aliases are addresses that the node's own errors may bear beside its own: those
	// of which it gives flows another destination.
	Aliases []netip.Addr
	// Limits of what is kept until it is fetched; 0: 1<<16, 1<<18, 1<<17.
	MaxFlows, MaxPackets, MaxErrors int
}

// Flow is one way of a flow, as it stood on a wire.
type Flow struct {
	Proto    uint8 // 6 or 17
	Src, Dst netip.AddrPort
}

// Reverse returns the other way.
func (f Flow) Reverse() Flow { return Flow{f.Proto, f.Dst, f.Src} }

// Count is how much of one way of a flow passed an interface.
type Count struct {
	Flow
	Interface   string
	Outgoing    bool
	Packets     int64
	Probes      int64 // of those: TTL at most Config.TTL
	Bytes       int64 // of the IP packets
	First, Last time.Time
}

// Packet is one packet at one interface of one node.
type Packet struct {
	Flow
	Time      time.Time
	Interface string
	Outgoing  bool
	TTL       uint8  // as seen here
	ID        uint16 // IPv4
	Seq       uint32 // of UDP: UDPSeq of the payload
	Ack       uint32
	TSval     uint32 // 0 without the option
	Flags     uint8  // TCP
	Payload   int    // bytes
}

// Error is an ICMP or ICMPv6 error that the node made itself.
type Error struct {
	Time       time.Time
	Interface  string // by which it left
	Addr, To   netip.Addr
	Type, Code uint8
	// What it quotes, as in Packet. ID is 0 for IPv6.
	Quoted     Flow
	ID         uint16
	Seq        uint32
	Ack, TSval uint32
	Payload    int
	// Short quotes end early: of TCP Ack, TSval and Payload are unknown, of UDP Seq.
	Short bool
}

// Log is what one node's observer has kept.
type Log struct {
	Local   []netip.Addr // the node's own addresses
	Counts  []Count
	Packets []Packet
	Errors  []Error
	Dropped Dropped
}

// Dropped counts what is missing from a Log. A test that relies on a log must see
// that it is zero.
type Dropped struct {
	Ring                   uint64 // packets that the observer was too slow for
	Flows, Packets, Errors uint64 // records beyond the limits
}

// Roles returns a node's abilities as a witness.
func Roles() node.Roles {
	w := &witness{}
	return node.Roles{
		"observe/start": node.Role(w.start),
		"observe/fetch": node.Role(w.fetch),
		"observe/stop":  node.Role(w.stop),
	}
}

// Start begins to observe at a node, until Stop or the node's end. Packets that
// pass after it returned are seen.
func Start(ctx context.Context, c node.Caller, cfg Config) error {
	return c.Call(ctx, "observe/start", cfg, nil)
}

// Fetch returns what a node's observer has kept, everything that has passed by now
// included; clear lets it forget that.
func Fetch(ctx context.Context, c node.Caller, clear bool) (Log, error) {
	return node.Call[Log](ctx, c, "observe/fetch", fetchArg{clear})
}

// Stop ends a node's observer and forgets what it has kept.
func Stop(ctx context.Context, c node.Caller) error {
	return c.Call(ctx, "observe/stop", none{}, nil)
}

type fetchArg struct{ Clear bool }

type none struct{}

// UDPSeq stands for the sequence number that UDP does not have: a hash (FNV-1a) of
// the payload's first 16 bytes. Payloads must differ there for packets to be told
// apart, above all in IPv6, which has no ID.
func UDPSeq(payload []byte) uint32 {
	h := uint32(2166136261)
	for _, b := range payload[:min(len(payload), udpHashed)] {
		h = (h ^ uint32(b)) * 16777619
	}
	return h
}

const udpHashed = 16
