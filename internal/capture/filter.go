package capture

import (
	"net/netip"

	"golang.org/x/net/bpf"
)

// The kernel's filter, a classic BPF program (Linux networking/filter.rst). It
// returns how many bytes of a packet to keep, from the link-layer header on: a
// TCP header is enough to follow a flow; an ICMP error is needed whole.
const (
	snapTCP  = 256  // Ethernet, two VLAN tags, 40 + extensions, 60
	snapICMP = 1600 // with a quote and extensions
	snapUDP  = 1600

	// Offsets that the kernel gives a meaning: from here on the network header,
	// or facts about the packet.
	netOffset = 0xfff00000 // SKF_NET_OFF
	adOffset  = 0xfffff000 // SKF_AD_OFF
	adType    = adOffset + 4
	adIndex   = adOffset + 8
	adHatype  = adOffset + 28

	hatypeLoopback = 772
	typeOutgoing   = 4

	maxInstructions = 3500 // of the 4096 that the kernel takes
)

// program builds the filter. Jumps are 8 bits wide, so every test is followed by
// its own verdict instead of a jump to a common one.
func program(cfg Config, indexes []int) []bpf.Instruction {
	narrow := instructionsFor(cfg) < maxInstructions
	if !narrow {
		cfg.Ports, cfg.Prefixes = nil, nil
	}
	var p []bpf.Instruction
	add := func(in ...bpf.Instruction) { p = append(p, in...) }
	drop, keep := bpf.RetConstant{}, func(n uint32) bpf.Instruction { return bpf.RetConstant{Val: n} }

	if len(indexes) > 1 {
		add(bpf.LoadAbsolute{Off: adIndex, Size: 4})
		for i, index := range indexes {
			add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(index), SkipTrue: uint8(len(indexes) - i)})
		}
		add(drop)
	}
	// A packet on the loopback interface passes twice; the copy that leaves is
	// one too many.
	add(bpf.LoadAbsolute{Off: adHatype, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: hatypeLoopback, SkipTrue: 3},
		bpf.LoadAbsolute{Off: adType, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeOutgoing, SkipTrue: 1},
		drop)
	// The version nibble decides, not the Ethernet type: that of an outgoing
	// packet with a VLAN tag is the tag's.
	v4, v6 := family4(cfg, keep, drop), family6(cfg, keep, drop)
	add(bpf.LoadAbsolute{Off: netOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x40, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(v4))})
	add(v4...)
	add(bpf.LoadAbsolute{Off: netOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x60, SkipTrue: 1},
		drop)
	add(v6...)
	return p
}

func instructionsFor(cfg Config) int { return 2*6*len(cfg.Ports) + 24*len(cfg.Prefixes) + 100 }

// family4 is the IPv4 branch; it always returns.
func family4(cfg Config, keep func(uint32) bpf.Instruction, drop bpf.Instruction) []bpf.Instruction {
	var p []bpf.Instruction
	add := func(in ...bpf.Instruction) { p = append(p, in...) }
	// A fragment that is not the first has no ports.
	add(bpf.LoadAbsolute{Off: netOffset + 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x1fff, SkipTrue: 1}, drop,
		// A = header length, kept in M[0].
		bpf.LoadAbsolute{Off: netOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0f},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: 0})
	add(bpf.LoadAbsolute{Off: netOffset + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 1, SkipTrue: 7})
	add(bpf.LoadScratch{Dst: bpf.RegX, N: 0},
		bpf.LoadIndirect{Off: netOffset, Size: 1}, // ICMP type
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 3, SkipTrue: 1}, keep(snapICMP),
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 11, SkipTrue: 1}, keep(snapICMP),
		drop)
	narrow := narrowed(cfg, prefixes4(cfg.Prefixes), drop)
	transports(&p, cfg, narrow, keep, drop, netOffset+9)
	return p
}

// family6 is the IPv6 branch; it always returns.
func family6(cfg Config, keep func(uint32) bpf.Instruction, drop bpf.Instruction) []bpf.Instruction {
	var p []bpf.Instruction
	add := func(in ...bpf.Instruction) { p = append(p, in...) }
	add(bpf.LoadConstant{Dst: bpf.RegA, Val: 40}, bpf.StoreScratch{Src: bpf.RegA, N: 0})
	add(bpf.LoadAbsolute{Off: netOffset + 6, Size: 1})
	// Extension headers are rare: the decoder walks them.
	for _, ext := range []uint32{0, 43, 44, 60} {
		add(bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ext, SkipTrue: 1}, keep(snapICMP))
	}
	add(bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 58, SkipTrue: 4},
		bpf.LoadAbsolute{Off: netOffset + 40, Size: 1}, // ICMPv6 type: errors 1, 2, 3
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: 3, SkipTrue: 1}, keep(snapICMP),
		drop)
	narrow := narrowed(cfg, prefixes6(cfg.Prefixes), drop)
	transports(&p, cfg, narrow, keep, drop, netOffset+6)
	return p
}

// transports ends a branch: TCP, and UDP if wanted, pass when narrow lets them.
func transports(p *[]bpf.Instruction, cfg Config, narrow []bpf.Instruction, keep func(uint32) bpf.Instruction, drop bpf.Instruction, proto uint32) {
	add := func(in ...bpf.Instruction) { *p = append(*p, in...) }
	pass := func(number, snap uint32) {
		add(bpf.LoadAbsolute{Off: proto, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: number, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(narrow) + 1)})
		add(narrow...)
		add(keep(snap))
	}
	pass(6, snapTCP)
	if cfg.UDP {
		pass(17, snapUDP)
	}
	add(drop)
}

// narrowed falls through when the packet's ports and addresses are wanted and
// returns a drop otherwise.
func narrowed(cfg Config, prefixes []bpf.Instruction, drop bpf.Instruction) []bpf.Instruction {
	var p []bpf.Instruction
	if len(cfg.Prefixes) > 0 {
		p = append(p, prefixes...)
		p = append(p, drop)
	}
	if len(cfg.Ports) == 0 {
		return p
	}
	const each = 5 // instructions of one comparison
	total := 2 * each * len(cfg.Ports)
	var ports []bpf.Instruction
	for _, off := range []uint32{netOffset, netOffset + 2} {
		for _, r := range cfg.Ports {
			// Behind these instructions stands one drop; a match jumps over it.
			out := uint32(total - len(ports) - each + 1)
			ports = append(ports, bpf.LoadScratch{Dst: bpf.RegX, N: 0},
				bpf.LoadIndirect{Off: off, Size: 2},
				bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(r.First), SkipTrue: 2},
				bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(r.Last), SkipTrue: 1},
				bpf.Jump{Skip: out})
		}
	}
	p = append(p, ports...)
	return append(p, drop)
}

// prefixTest is one comparison of an address with a prefix.
type prefixTest struct {
	off    uint32
	prefix netip.Prefix
}

func prefixes4(all []netip.Prefix) []bpf.Instruction {
	var tests []prefixTest
	for _, p := range all {
		if p.Addr().Is4() {
			tests = append(tests, prefixTest{netOffset + 12, p}, prefixTest{netOffset + 16, p})
		}
	}
	return compile(tests)
}

func prefixes6(all []netip.Prefix) []bpf.Instruction {
	var tests []prefixTest
	for _, p := range all {
		if p.Addr().Is6() {
			tests = append(tests, prefixTest{netOffset + 8, p}, prefixTest{netOffset + 24, p})
		}
	}
	return compile(tests)
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
