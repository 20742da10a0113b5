package capture

import (
	"encoding/binary"
	"slices"

	"golang.org/x/net/bpf"

	"servicetraceroute/trace"
)

// few says of which flows a packet socket shows all packets while it shows of the others no more
// than what begins or ends them and what tells whose they are: a packet that the filter turns
// away costs its sender or receiver a fraction of one that is shown. The flows are told by their
// keys; one that has the same key as another is shown too.
type few struct {
	v4, v6 []uint32 // sorted
	udp    bool     // also of those over UDP, of which little tells that they begin
}

// maxFew is how many flows the filter can tell.
const maxFew = 256

// fewOf are those flows.
func fewOf(flows map[trace.FlowKey]struct{}, udp bool) *few {
	w := &few{udp: udp}
	for k := range flows {
		if k.Src.Addr().Is4() {
			w.v4 = append(w.v4, fewKey(k))
		} else {
			w.v6 = append(w.v6, fewKey(k))
		}
	}
	slices.Sort(w.v4)
	slices.Sort(w.v6)
	w.v4, w.v6 = slices.Compact(w.v4), slices.Compact(w.v6)
	return w
}

const fewFactor = 0x9e3779b1 // 2^32 over the golden ratio, see Knuth, The Art of Computer Programming 3, 6.4

// fewKey is what the filter computes of a packet, the same for both of a flow's ways.
func fewKey(k trace.FlowKey) (key uint32) {
	src, dst := k.Src.Addr().AsSlice(), k.Dst.Addr().AsSlice()
	for i := 0; i < len(src); i += 4 {
		key = (key + (binary.BigEndian.Uint32(src[i:]) ^ binary.BigEndian.Uint32(dst[i:]))) * fewFactor
	}
	return key + uint32(k.Src.Port())*uint32(k.Dst.Port())
}

// More of the program's scratch memory.
const (
	fewProto = 2
	fewWords = 3
	fewPort  = 4
)

const tcpEnds = 0x01 | 0x02 | 0x04 // FIN, SYN, RST

// gate lets those packets pass: it falls through with the protocol in A, as it began, and drops
// the others. The addresses lie at src, behind the network header's start, and behind one another.
func gate(cfg Config, keys []uint32, allUDP bool, src, addrLen uint32) []bpf.Instruction {
	var g gateCode
	g.add(bpf.StoreScratch{Src: bpf.RegA, N: fewProto})
	if allUDP {
		g.passIf(protoUDP)
	} else {
		g.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipTrue: 2})
	}
	g.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: 1}, drop)
	// What is in every packet comes first: a load behind its end drops it.
	g.add(bpf.LoadScratch{Dst: bpf.RegX, N: headerLen})
	if cfg.Names {
		for _, off := range []uint32{netOffset, netOffset + 2} {
			g.add(bpf.LoadIndirect{Off: off, Size: 2})
			g.passIf(portDNS)
		}
	}
	g.key(src, addrLen)
	g.tree(keys)
	var tcp, udp gateCode
	tcp.add(bpf.LoadScratch{Dst: bpf.RegX, N: headerLen}, bpf.LoadIndirect{Off: netOffset + 13, Size: 1})
	tcp.pass(bpf.JumpBitsSet, tcpEnds)
	if cfg.Names {
		tcp.words()
		udp.add(bpf.LoadScratch{Dst: bpf.RegX, N: headerLen},
			bpf.LoadIndirect{Off: netOffset + 8, Size: 1}, // the payload's first byte
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xc0})
		udp.passIf(0xc0) // a long header of QUIC
	}
	udp.add(drop)
	tcp.add(drop)
	g.add(bpf.LoadScratch{Dst: bpf.RegA, N: fewProto}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: uint8(len(udp.p))})
	g.add(udp.p...)
	g.add(tcp.p...)
	return g.sealed()
}

// gateCode is a program in the making whose jumps to its end are not known yet.
type gateCode struct{ p []bpf.Instruction }

// toPass marks such a jump.
const toPass = ^uint32(0)

func (g *gateCode) add(in ...bpf.Instruction) { g.p = append(g.p, in...) }

// pass lets a packet pass, if A is such. Conditional jumps are too short for that.
func (g *gateCode) pass(cond bpf.JumpTest, val uint32) {
	g.add(bpf.JumpIf{Cond: cond, Val: val, SkipFalse: 1}, bpf.Jump{Skip: toPass})
}

func (g *gateCode) passIf(val uint32) { g.pass(bpf.JumpEqual, val) }

func (g *gateCode) sealed() []bpf.Instruction {
	for i, in := range g.p {
		if j, ok := in.(bpf.Jump); ok && j.Skip == toPass {
			g.p[i] = bpf.Jump{Skip: uint32(len(g.p) - i - 1)}
		}
	}
	return append(g.p, bpf.LoadScratch{Dst: bpf.RegA, N: fewProto})
}

// key leaves fewKey in A.
func (g *gateCode) key(src, addrLen uint32) {
	g.add(bpf.LoadConstant{Dst: bpf.RegA, Val: 0})
	for i := uint32(0); i < addrLen; i += 4 {
		g.add(bpf.StoreScratch{Src: bpf.RegA, N: fewWords},
			bpf.LoadAbsolute{Off: src + i, Size: 4}, bpf.TAX{},
			bpf.LoadAbsolute{Off: src + addrLen + i, Size: 4}, bpf.ALUOpX{Op: bpf.ALUOpXor},
			bpf.LoadScratch{Dst: bpf.RegX, N: fewWords}, bpf.ALUOpX{Op: bpf.ALUOpAdd},
			bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: fewFactor})
	}
	g.add(bpf.StoreScratch{Src: bpf.RegA, N: fewWords},
		bpf.LoadScratch{Dst: bpf.RegX, N: headerLen},
		bpf.LoadIndirect{Off: netOffset, Size: 2}, bpf.StoreScratch{Src: bpf.RegA, N: fewPort},
		bpf.LoadIndirect{Off: netOffset + 2, Size: 2}, bpf.LoadScratch{Dst: bpf.RegX, N: fewPort},
		bpf.ALUOpX{Op: bpf.ALUOpMul},
		bpf.LoadScratch{Dst: bpf.RegX, N: fewWords}, bpf.ALUOpX{Op: bpf.ALUOpAdd})
}

// tree passes what has one of the keys, and falls through otherwise.
func (g *gateCode) tree(keys []uint32) {
	end := len(g.p) + treeLen(len(keys))
	var part func(keys []uint32)
	part = func(keys []uint32) {
		if n := len(keys); n > treeLeaf {
			half := n / 2
			g.add(bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: keys[half], SkipFalse: 1}, bpf.Jump{Skip: uint32(treeLen(half))})
			part(keys[:half])
			part(keys[half:])
			return
		}
		for _, k := range keys {
			g.passIf(k)
		}
		g.add(bpf.Jump{Skip: uint32(end - len(g.p) - 1)})
	}
	part(keys)
}

// treeLeaf is how many keys are compared one after another.
const treeLeaf = 4

// treeLen is of how many instructions the part for so many keys is.
func treeLen(n int) int {
	if n > treeLeaf {
		return 2 + treeLen(n/2) + treeLen(n-n/2)
	}
	return 2*n + 1
}

// words passes a TCP client's first words, as far as they can be told without knowing what came
// before: the beginning of a TLS hello or of an HTTP/1 request.
func (g *gateCode) words() {
	g.add(bpf.LoadIndirect{Off: netOffset + 12, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x3c}, // its header's length
		bpf.ALUOpX{Op: bpf.ALUOpAdd}, bpf.TAX{}, payloadLoad{off: 0, size: 4})
	for _, method := range []string{"GET ", "HEAD", "POST", "PUT ", "DELE", "CONN", "OPTI", "PATC", "TRAC"} {
		g.passIf(binary.BigEndian.Uint32([]byte(method)))
	}
	const tls, handshake, clientHello = 3, 22, 1 // major version, type of record, of message
	g.add(bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: handshake<<8 | tls, SkipTrue: 1},
		drop,
		payloadLoad{off: 5, size: 1})
	g.passIf(clientHello)
}

// payloadLoad is a load from behind all headers, whose length from the IP header on is in X.
type payloadLoad struct {
	off  uint32
	size int
}

// Assemble implements bpf.Instruction.
func (l payloadLoad) Assemble() (bpf.RawInstruction, error) { return l.behind(netOffset).Assemble() }

// behind is the load where the network header begins there.
func (l payloadLoad) behind(network uint32) bpf.LoadIndirect {
	return bpf.LoadIndirect{Off: network + l.off, Size: l.size}
}
