package servicetraceroute

import (
	"cmp"
	"errors"
	"fmt"

	"servicetraceroute/internal/capture"
)

// Backend is how a Tracer sees packets. The zero value is BackendAuto.
type Backend uint8

// The back ends. BackendAuto is BackendEBPF where that can be had, else BackendAFPacket; the
// Logger is told why, and so are Stats.
const (
	BackendAuto Backend = iota
	// BackendEBPF is eBPF programs at the interfaces: packets of flows that nobody selected
	// cost next to nothing. It takes Linux 6.6 or newer and CAP_BPF, CAP_NET_ADMIN and
	// CAP_PERFMON in the initial user namespace, and cannot keep what flows carry
	// (Config.PcapPayload).
	BackendEBPF
	// BackendAFPacket is a packet socket with a ring in memory. It takes CAP_NET_RAW.
	BackendAFPacket
	// BackendSock takes no capability and sees no packets: TraceConn returns a trace that was
	// refused for trace.ReasonCapability, Trace and Watch an error that matches
	// errors.ErrUnsupported. A path without capabilities takes a connection that is yet to be
	// made, or one of whose socket Config.Source and Config.Sink are made; the command's dial
	// does both. It excludes Config.Processes and Config.Pcap.
	BackendSock
)

// ErrEBPF is matched by errors of New about a BackendEBPF that cannot be had.
var ErrEBPF = capture.ErrEBPF

var backendWords = [...]string{BackendAuto: "auto", BackendEBPF: "ebpf", BackendAFPacket: "afpacket", BackendSock: "sock"}

// String is the word of the command line.
func (b Backend) String() string {
	if int(b) < len(backendWords) {
		return backendWords[b]
	}
	return fmt.Sprintf("backend(%d)", uint8(b))
}

// MarshalText writes the word.
func (b Backend) MarshalText() ([]byte, error) {
	if int(b) >= len(backendWords) {
		return nil, fmt.Errorf("unknown back end %d", uint8(b))
	}
	return []byte(backendWords[b]), nil
}

// UnmarshalText reads the word.
func (b *Backend) UnmarshalText(text []byte) error {
	for i, word := range backendWords {
		if word == string(text) {
			*b = Backend(i)
			return nil
		}
	}
	return fmt.Errorf("unknown back end %q", text)
}

// fewFrom is from how many packets a second on a packet socket shows whole flows only where they
// are followed. They cost a host of two processors one percent of one, and are less than what a
// single download has.
const fewFrom = 20_000

// openSource opens what the Config asks for, and tells which one that is, and why.
func openSource(cfg Config) (source Source, backend, reason string, err error) {
	c := capture.Config{Interfaces: cfg.Interfaces, Payload: cfg.keepsPayload(), RingBytes: cfg.RingBytes, Few: cmp.Or(cfg.few, fewFrom)}
	reason = "asked for"
	if cfg.Backend == BackendSock {
		return newNoSource(), "sock", reason, nil
	}
	if cfg.Backend != BackendAFPacket {
		tap, err := capture.OpenTap(c)
		switch {
		case err == nil && cfg.Backend == BackendAuto:
			return tap, "ebpf", "auto: the kernel took its programs", nil
		case err == nil:
			return tap, "ebpf", reason, nil
		case cfg.Backend == BackendEBPF, errors.Is(err, capture.ErrNoInterface):
			return nil, "", "", err
		}
		reason = "no eBPF: " + err.Error()
		cfg.Logger.Debug("packet sockets, since there is no eBPF", "err", err)
	}
	ring, err := capture.Open(c)
	if err != nil {
		return nil, "", "", err
	}
	return ring, "afpacket", reason, nil
}
