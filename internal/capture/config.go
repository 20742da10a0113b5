package capture

import (
	"errors"
	"net/netip"
)

// ErrNoInterface is matched by errors about interfaces that do not exist.
var ErrNoInterface = errors.New("no such interface")

// ErrEBPF is matched by errors about a Tap.
var ErrEBPF = errors.New("eBPF")

// ErrPayload says that a Tap cannot keep what Config.Payload asks for.
var ErrPayload = errors.New("whole packets cannot be kept")

// Config says what a Ring captures. The zero value is every TCP header and ICMP
// error at every interface.
type Config struct {
	// Interfaces limits capture to these, by name; empty is all, also those that
	// appear later. It is fixed when the ring is opened; an interface that is deleted
	// and made again is found within a second or two.
	Interfaces []string
	// Ports and Prefixes narrow TCP and UDP: a packet passes if its source or
	// destination lies in one of each. ICMP errors always pass, and so does what
	// has IPv6 extension headers. Lists too long for the kernel (some hundreds) do
	// not narrow at all.
	Ports    []PortRange
	Prefixes []netip.Prefix
	// UDP admits UDP packets as well.
	UDP bool
	// Payload keeps TCP packets whole, as far as a block of the ring (128 KiB) holds
	// them, instead of their headers alone.
	Payload bool
	// Names keeps of TCP packets that leave the first 4 KiB of payload, enough for the
	// name that a client's first words hold, and DNS answers whole. NamesIn keeps as much
	// of those that come to a port below 32768, where servers listen: above, the kernel
	// takes the ports of clients from (ip_local_port_range), and what comes there is what
	// this host downloads.
	Names, NamesIn bool
	// Few is from how many packets a second on a ring shows whole flows only where it is
	// told to follow them; 0: always. It counts when the ring is opened.
	Few int
	// RingBytes is the memory shared with the kernel; 0 is 16 MiB, with Payload 32 MiB.
	RingBytes int
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }
