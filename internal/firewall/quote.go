package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"

	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
)

// What an ICMP error has to quote to be about a probe. It begins 8 bytes behind the ICMP
// header; the offsets below count from there on, as nf_tables counts from the start of the
// ICMP header.
//
//	IPv4   ICMP header  0
//	       IP header    8   identification 12, protocol 17, destination 24
//	       transport   28   ports, then 4 bytes: the sequence number, or length and checksum of a datagram
//	       payload     36   of a datagram
//	IPv6   IP header    8   next header 14, destination 32
//	       transport   48   ports, sequence number
//	       payload     56
//
// A short quote is told by its first 28 bytes (IPv4): destination, ports, those 4 bytes and
// the identification, as it was sent or with its bytes swapped, as some routers quote it.
// 48 of these bits are the probe's own. A quoted datagram is also told by its payload, 64
// random bits, whatever the path did to its header; over IPv6 only so, since IPv6 routers
// quote all there is (RFC 4443 section 2.4).
const (
	header4, id4, proto4, dst4, payload4 = 8, 12, 17, 24, 36
	proto6, dst6, payload6               = 14, 32, 56

	head4   = 12 // bytes: destination, ports and those 4 bytes
	head6   = 24
	noOpts4 = 0x45 // of an IPv4 header without options, as ours is
)

// The keys of the sets. Each part of a key begins at a multiple of 4 bytes.
const (
	quote4Len  = head4 + 4
	quote6Len  = head6
	payloadLen = probe.PayloadLen
)

// errProbe is about a packet that is none of our probes.
var errProbe = errors.New("firewall: not a probe")

// keys are what is to be added to the sets, one behind the other.
type keys struct {
	quotes4, quotes6, payloads []byte
}

func (k *keys) reset() {
	k.quotes4, k.quotes6, k.payloads = k.quotes4[:0], k.quotes6[:0], k.payloads[:0]
}

// add adds what quotes of one probe, a whole IP packet as it will be sent, have to show.
func (k *keys) add(packet []byte) error {
	var ip wire.Packet
	if err := ip.Decode(packet, len(packet)); err != nil {
		return fmt.Errorf("%w: %w", errProbe, err)
	}
	udp := ip.Proto == wire.ProtoUDP
	if !udp && ip.Proto != wire.ProtoTCP || len(ip.Transport) < 8 || ip.Version == 4 && packet[0] != noOpts4 {
		return errProbe
	}
	if udp {
		var u wire.UDP
		if u.Decode(ip.Transport, ip.TransportLen) != nil || len(u.Payload) != probe.PayloadLen {
			return errProbe
		}
		k.payloads = append(k.payloads, u.Payload...)
	}
	switch {
	case ip.Version == 4:
		k.quotes4 = appendQuote4(k.quotes4, &ip, ip.ID)
		k.quotes4 = appendQuote4(k.quotes4, &ip, ip.ID>>8|ip.ID<<8)
	case !udp:
		dst := ip.Dst.As16()
		k.quotes6 = append(append(k.quotes6, dst[:]...), ip.Transport[:8]...)
	}
	return nil
}

func appendQuote4(b []byte, ip *wire.Packet, id uint16) []byte {
	dst := ip.Dst.As4()
	b = append(append(b, dst[:]...), ip.Transport[:8]...)
	return append(binary.BigEndian.AppendUint16(b, id), 0, 0)
}
