package capture

import (
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
)

// The kernel's filter, a classic BPF program (Linux networking/filter.rst). It
// returns how many bytes of a packet to keep, from the link-layer header on: a
// TCP header is enough to follow a flow; an ICMP error is needed whole.
const (
	snapTCP  = 192  // Ethernet, two VLAN tags, 60 of IP, 60 of TCP, and a margin
	snapICMP = 1600 // with a quote and extensions
	snapUDP  = 1600 // what one packet on the wire has
	// snapHello holds a client's first words whole: a TLS hello with post-quantum keys
	// is 1.8 kB, and may leave in one packet that is split only below.
	snapHello = snapTCP + 4096
	// snapInitials holds the packets of a QUIC hello that were handed over as one
	// (segmentation offload).
	snapInitials = 8 << 10
	// snapWhole is more than a block of the ring holds: the kernel cuts there.
	snapWhole = 256 << 10

	// Offsets that the kernel gives a meaning (linux/filter.h): from here on the
	// network header, or facts about the packet.
	netOffset = 0xfff00000 // SKF_NET_OFF
	adOffset  = 0xfffff000 // SKF_AD_OFF
	adProto   = adOffset
	adType    = adOffset + 4
	adIndex   = adOffset + 8
	adHatype  = adOffset + 28

	portDNS        = 53
	hatypeEther    = 1
	hatypeLoopback = 772
	etherHeader    = 14
	typeOutgoing   = 4

	protoICMP, protoTCP, protoUDP, protoICMPv6 = 1, 6, 17, 58

	maxInstructions = 3500 // of the 4096 that the kernel takes
)

// ClientPorts is the first of the ports that clients get: Linux gives them from
// there on (net.ipv4.ip_local_port_range), and servers listen below.
const ClientPorts = 32768

// The scratch memory of the program.
const (
	headerLen = 0 // of the IP header
	snap      = 1 // what to return if the packet is wanted
)

// program builds the filter. A selection too long for the kernel does not narrow
// at all: whoever reads the ring selects again, and more than it asked for is
// harmless where less is not.
func program(cfg Config, indexes []int, only *few) []bpf.Instruction {
	p := assembled(cfg, indexes, true, only)
	if len(p) > maxInstructions {
		p = assembled(cfg, indexes, false, only)
	}
	if len(p) > maxInstructions {
		cfg.Ports, cfg.Prefixes = nil, nil
		p = assembled(cfg, indexes, true, only)
	}
	return p
}

// assembled writes the parts one after another. Conditional jumps are 8 bits wide:
// over parts of unknown length only the unconditional jump leads. What most packets look like
// may come first, once more, with the places that fields have in it.
func assembled(cfg Config, indexes []int, usual bool, only *few) []bpf.Instruction {
	v4, v6 := family4(cfg, only), family6(cfg, only)
	p := onInterfaces(indexes)
	if usual {
		p = append(p, ethernet(v4, v6)...)
	}
	// ETH_P_ALL brings everything that crosses; ARP or LLDP could look like IP
	// where the version is. Tags are those of outgoing frames: of incoming ones the
	// kernel takes the first off.
	p = append(p, bpf.LoadAbsolute{Off: adProto, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x0800, SkipTrue: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x86dd, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x8100, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x88a8, SkipTrue: 1},
		drop,
		// A packet on the loopback interface passes twice; the copy that leaves is
		// one too many.
		bpf.LoadAbsolute{Off: adHatype, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: hatypeLoopback, SkipTrue: 3},
		bpf.LoadAbsolute{Off: adType, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeOutgoing, SkipTrue: 1},
		drop)
	// The version nibble decides, not the Ethernet type: that of an outgoing
	// packet with a VLAN tag is the tag's.
	p = append(p, bpf.LoadAbsolute{Off: netOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x40, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x60, SkipTrue: 1},
		drop,
		bpf.Jump{Skip: uint32(len(v4))})
	p = append(p, v4...)
	p = append(p, v6...)
	for i, in := range p {
		if load, ok := in.(payloadLoad); ok {
			p[i] = load.behind(netOffset)
		}
	}
	return p
}

// ethernet takes what has an Ethernet header without tags, and behind it IPv6 or IPv4 without
// options. All its fields are where they always are, and loading them takes the kernel no call:
// as many as there are cost a packet some 40 ns. What is otherwise falls through.
func ethernet(v4, v6 []bpf.Instruction) []bpf.Instruction {
	const etherType, version = 12, etherHeader // where they are
	p4 := append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: version, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x45, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(v4))},
	}, placed(v4, 20)...)
	p6 := append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: version, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x60, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(v6))},
	}, placed(v6, 40)...)
	of := func(value uint32, body []bpf.Instruction) []bpf.Instruction {
		return append([]bpf.Instruction{
			bpf.LoadAbsolute{Off: etherType, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))},
		}, body...)
	}
	body := append(of(0x0800, p4), of(0x86dd, p6)...)
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: adHatype, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: hatypeEther, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(body))},
	}, body...)
}

// placed is a branch for packets behind an Ethernet header whose IP header has that length.
func placed(branch []bpf.Instruction, header uint32) []bpf.Instruction {
	out := slices.Clone(branch)
	for i, in := range out {
		switch in := in.(type) {
		case bpf.LoadAbsolute:
			if in.Off >= netOffset && in.Off < adOffset {
				in.Off = in.Off - netOffset + etherHeader
				out[i] = in
			}
		case payloadLoad:
			out[i] = in.behind(etherHeader)
		case bpf.LoadIndirect: // all others are relative to the IP header's end
			out[i] = bpf.LoadAbsolute{Off: in.Off - netOffset + etherHeader + header, Size: in.Size}
		}
	}
	return out
}

var drop = bpf.RetConstant{}

func keep(n uint32) bpf.Instruction { return bpf.RetConstant{Val: n} }

// onInterfaces passes those of several interfaces; for one alone bind does it.
func onInterfaces(indexes []int) []bpf.Instruction {
	if len(indexes) < 2 {
		return nil
	}
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: adIndex, Size: 4}}
	for i, index := range indexes {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(index), SkipTrue: 1},
			bpf.Jump{Skip: uint32(2*(len(indexes)-1-i) + 1)})
	}
	return append(p, drop)
}

// family4 is the IPv4 branch; it always returns.
func family4(cfg Config, only *few) []bpf.Instruction {
	p := []bpf.Instruction{
		// A fragment that is not the first has no ports.
		bpf.LoadAbsolute{Off: netOffset + 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x1fff, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: netOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0f},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: headerLen},
		bpf.LoadScratch{Dst: bpf.RegX, N: headerLen},
		bpf.LoadAbsolute{Off: netOffset + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMP, SkipTrue: 5},
		bpf.LoadIndirect{Off: netOffset, Size: 1}, // type: errors of traceroute's kind
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 3, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 11, SkipTrue: 1},
		drop,
		keep(snapICMP),
	}
	var tests []prefixTest
	for _, prefix := range cfg.Prefixes {
		if prefix = unmapped(prefix); prefix.Addr().Is4() {
			tests = append(tests, prefixTest{netOffset + 12, prefix}, prefixTest{netOffset + 16, prefix})
		}
	}
	if only != nil {
		p = append(p, gate(cfg, only.v4, !only.udp, netOffset+12, 4)...)
	}
	return append(p, transports(cfg, tests)...)
}

// family6 is the IPv6 branch; it always returns.
func family6(cfg Config, only *few) []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadConstant{Dst: bpf.RegA, Val: 40},
		bpf.StoreScratch{Src: bpf.RegA, N: headerLen},
		bpf.LoadAbsolute{Off: netOffset + 6, Size: 1},
		// Extension headers are rare: they pass, and the decoder walks them.
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 8},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 43, SkipTrue: 7},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 44, SkipTrue: 6},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 60, SkipTrue: 5},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMPv6, SkipTrue: 5},
		// Errors are 1 to 3; neighbour discovery alone would be most of what comes.
		bpf.LoadAbsolute{Off: netOffset + 40, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: 3, SkipTrue: 1},
		drop,
		keep(snapICMP),
	}
	var tests []prefixTest
	for _, prefix := range cfg.Prefixes {
		if prefix = unmapped(prefix); prefix.Addr().Is6() {
			tests = append(tests, prefixTest{netOffset + 8, prefix}, prefixTest{netOffset + 24, prefix})
		}
	}
	if only != nil {
		p = append(p, gate(cfg, only.v6, !only.udp, netOffset+8, 16)...)
	}
	return append(p, transports(cfg, tests)...)
}

// unmapped is the IPv4 prefix that an IPv4-mapped one means.
func unmapped(p netip.Prefix) netip.Prefix {
	if !p.Addr().Is4In6() {
		return p
	}
	return netip.PrefixFrom(p.Addr().Unmap(), max(p.Bits()-96, 0))
}

// snapTCP leaves in A how much of a TCP packet is kept.
func (c Config) snapTCP() []bpf.Instruction {
	load := func(n uint32) bpf.Instruction { return bpf.LoadConstant{Dst: bpf.RegA, Val: n} }
	switch {
	case c.Payload:
		return []bpf.Instruction{load(snapWhole)}
	case c.Names:
		serverPorts := uint32(0) // none
		if c.NamesIn {
			serverPorts = ClientPorts
		}
		return []bpf.Instruction{
			bpf.LoadScratch{Dst: bpf.RegX, N: headerLen},
			bpf.LoadAbsolute{Off: adType, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeOutgoing, SkipTrue: 7},
			bpf.LoadIndirect{Off: netOffset, Size: 2}, // the source port
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: portDNS, SkipTrue: 2},
			load(snapWhole),
			bpf.Jump{Skip: 6},
			bpf.LoadIndirect{Off: netOffset + 2, Size: 2},              // the destination port
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: portDNS, SkipTrue: 1}, // of a resolver on this host
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: serverPorts, SkipTrue: 2},
			load(snapHello),
			bpf.Jump{Skip: 1},
			load(snapTCP),
		}
	}
	return []bpf.Instruction{load(snapTCP)}
}

// snapUDP leaves in A how much of a datagram is kept.
func (c Config) snapUDP() []bpf.Instruction {
	load := func(n uint32) bpf.Instruction { return bpf.LoadConstant{Dst: bpf.RegA, Val: n} }
	switch {
	case c.Payload:
		return []bpf.Instruction{load(snapWhole)}
	case c.Names:
		return []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtLen},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: snapUDP, SkipTrue: 2},
			load(snapUDP),
			bpf.Jump{Skip: 10},
			// It has all that is looked at here.
			bpf.LoadScratch{Dst: bpf.RegX, N: headerLen},
			bpf.LoadIndirect{Off: netOffset, Size: 2}, // the source port
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: portDNS, SkipTrue: 2},
			load(snapWhole),
			bpf.Jump{Skip: 5},
			bpf.LoadIndirect{Off: netOffset + 8, Size: 1},             // the payload's first byte
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x80, SkipTrue: 2}, // a long header of QUIC
			load(snapUDP),
			bpf.Jump{Skip: 1},
			load(snapInitials),
		}
	}
	return []bpf.Instruction{load(snapUDP)}
}

// transports ends a branch: TCP, and UDP if wanted, pass where the selection lets
// them. A holds the protocol.
func transports(cfg Config, prefixes []prefixTest) []bpf.Instruction {
	tcp := cfg.snapTCP()
	other := []bpf.Instruction{drop}
	if cfg.UDP {
		other = []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipTrue: 1},
			drop,
		}
		other = append(other, cfg.snapUDP()...)
	}
	p := []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoTCP, SkipTrue: uint8(len(tcp) + 1)}}
	p = append(append(p, tcp...), bpf.Jump{Skip: uint32(len(other))})
	p = append(p, other...)
	p = append(p, bpf.StoreScratch{Src: bpf.RegA, N: snap})
	if len(cfg.Prefixes) > 0 {
		p = append(p, compile(prefixes)...)
		p = append(p, drop)
	}
	p = append(p, ports(cfg.Ports)...)
	return append(p, bpf.LoadScratch{Dst: bpf.RegA, N: snap}, bpf.RetA{})
}

// ports falls through when a port lies in a range and drops otherwise.
func ports(ranges []PortRange) []bpf.Instruction {
	if len(ranges) == 0 {
		return nil
	}
	const each = 3 // instructions of one comparison
	total := 1 + 2*(1+each*len(ranges)) + 1
	p := []bpf.Instruction{bpf.LoadScratch{Dst: bpf.RegX, N: headerLen}}
	for _, off := range []uint32{netOffset, netOffset + 2} { // source, destination
		p = append(p, bpf.LoadIndirect{Off: off, Size: 2})
		for _, r := range ranges {
			p = append(p, bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(r.First), SkipTrue: 2},
				bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(r.Last), SkipTrue: 1})
			p = append(p, bpf.Jump{Skip: uint32(total - len(p) - 1)})
		}
	}
	return append(p, drop)
}

// prefixTest is one comparison of an address with a prefix.
type prefixTest struct {
	off    uint32
	prefix netip.Prefix
}

// compile writes the tests one after another. A match jumps behind the whole and
// over one more instruction, the caller's drop.
func compile(tests []prefixTest) []bpf.Instruction {
	var blocks [][]bpf.Instruction
	for _, t := range tests {
		blocks = append(blocks, t.words())
	}
	total := 0
	for _, b := range blocks {
		total += len(b) + 1
	}
	var p []bpf.Instruction
	for _, b := range blocks {
		p = append(p, b...)
		p = append(p, bpf.Jump{Skip: uint32(total - len(p) - 1 + 1)})
	}
	return p
}

// words compares word by word; a difference jumps behind the block, which the
// match's jump ends.
func (t prefixTest) words() []bpf.Instruction {
	raw := t.prefix.Masked().Addr().AsSlice()
	bits := t.prefix.Bits()
	var n int
	for b := bits; b > 0; b -= 32 {
		n++
	}
	var p []bpf.Instruction
	for w := range n {
		word := uint32(raw[4*w])<<24 | uint32(raw[4*w+1])<<16 | uint32(raw[4*w+2])<<8 | uint32(raw[4*w+3])
		p = append(p, bpf.LoadAbsolute{Off: t.off + uint32(4*w), Size: 4})
		if left := bits - 32*w; left < 32 {
			p = append(p, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ^uint32(0) << (32 - left)})
		}
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: word})
	}
	// Now that the length is known, let each difference jump behind the block.
	for i, in := range p {
		if j, ok := in.(bpf.JumpIf); ok {
			j.SkipTrue = uint8(len(p) - i) // the match's jump stands at len(p)
			p[i] = j
		}
	}
	return p
}
