package capture

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

// The virtual machine of x/net knows neither network offsets nor facts about the
// packet. Here they lie in front of its Ethernet header.
const factsLen = 64

// frame is a packet with what the kernel would know about it.
func frame(facts facts, ip []byte) []byte {
	b := make([]byte, factsLen+etherHeader, factsLen+etherHeader+len(ip))
	binary.BigEndian.PutUint16(b[adProto-adOffset:], facts.proto)
	b[adType-adOffset] = facts.pkttype
	binary.BigEndian.PutUint32(b[adIndex-adOffset:], facts.index)
	binary.BigEndian.PutUint16(b[adHatype-adOffset:], facts.hatype)
	binary.BigEndian.PutUint16(b[factsLen+12:], facts.proto)
	return append(b, ip...)
}

type facts struct {
	proto   uint16
	pkttype uint8
	index   uint32
	hatype  uint16
}

// machine runs the program; the result is cut at the packet's length.
func machine(t testing.TB, cfg Config, indexes ...int) func(facts, []byte) int {
	t.Helper()
	return vmOf(t, program(cfg, indexes, nil))
}

func vmOf(t testing.TB, p []bpf.Instruction) func(facts, []byte) int {
	t.Helper()
	if len(p) > maxInstructions {
		t.Fatalf("%d instructions", len(p))
	}
	at := func(off uint32) uint32 {
		switch {
		case off >= adOffset:
			return off - adOffset
		case off >= netOffset:
			return off - netOffset + factsLen + etherHeader
		}
		return off + factsLen
	}
	for i, in := range p {
		switch in := in.(type) {
		case bpf.LoadAbsolute:
			in.Off = at(in.Off)
			p[i] = in
		case bpf.LoadIndirect:
			in.Off = at(in.Off)
			p[i] = in
		}
	}
	vm, err := bpf.NewVM(p)
	if err != nil {
		t.Fatal(err)
	}
	return func(f facts, ip []byte) int {
		n, err := vm.Run(frame(f, ip))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// datagram is the start of an IP packet; rest follows the IP header.
func datagram(src, dst string, proto uint8, rest ...byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	var b []byte
	if s.Is4() {
		b = make([]byte, 20)
		b[0], b[9] = 0x45, proto
		copy(b[12:], s.AsSlice())
		copy(b[16:], d.AsSlice())
	} else {
		b = make([]byte, 40)
		b[0], b[6] = 0x60, proto
		copy(b[8:], s.AsSlice())
		copy(b[24:], d.AsSlice())
	}
	return append(append(b, rest...), make([]byte, 300)...)
}

func portBytes(src, dst uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src), dst)
}

func edited(b []byte, edit func([]byte)) []byte {
	edit(b)
	return b
}

func TestProgram(t *testing.T) {
	ether4 := facts{proto: 0x0800, hatype: 1, index: 7}
	ether6 := facts{proto: 0x86dd, hatype: 1, index: 7}
	syn4 := datagram("10.0.0.1", "10.0.0.2", protoTCP, portBytes(1000, 443)...)
	syn6 := datagram("fd00::1", "fd00::2", protoTCP, portBytes(1000, 443)...)
	udp4 := datagram("10.0.0.1", "10.0.0.2", protoUDP, portBytes(1000, 53)...)
	udp6 := datagram("fd00::1", "fd00::2", protoUDP, portBytes(1000, 53)...)
	icmp4 := func(typ byte) []byte { return datagram("10.0.0.1", "10.0.0.2", protoICMP, typ) }
	icmp6 := func(typ byte) []byte { return datagram("fd00::1", "fd00::2", protoICMPv6, typ) }
	port := func(first, last uint16) Config { return Config{Ports: []PortRange{{first, last}}} }
	prefixes := func(list ...string) (cfg Config) {
		for _, p := range list {
			cfg.Prefixes = append(cfg.Prefixes, netip.MustParsePrefix(p))
		}
		return cfg
	}
	options := edited(append(append(datagram("10.0.0.1", "10.0.0.2", protoTCP), make([]byte, 40)...), 0), func(b []byte) {
		b[0] = 0x4f // 40 bytes of options
		copy(b[60:], portBytes(1000, 443))
	})
	leaves := facts{proto: 0x0800, hatype: 1, pkttype: 4}
	udpOf := func(src, dst uint16, first byte, payload int) []byte {
		b := datagram("10.0.0.1", "10.0.0.2", protoUDP, append(append(portBytes(src, dst), 0, 0, 0, 0), first)...)
		return append(b, make([]byte, 2400)...)[:28+payload]
	}
	for name, test := range map[string]struct {
		cfg  Config
		f    facts
		ip   []byte
		want int
	}{
		"TCP":                    {Config{}, ether4, syn4, snapTCP},
		"TCP over IPv6":          {Config{}, ether6, syn6, snapTCP},
		"outgoing VLAN tag":      {Config{}, facts{proto: 0x8100, hatype: 1, pkttype: 4}, syn4, snapTCP},
		"outgoing two tags":      {Config{}, facts{proto: 0x88a8, hatype: 1, pkttype: 4}, syn6, snapTCP},
		"not IP":                 {Config{}, facts{proto: 0x88cc, hatype: 1}, syn4, 0},
		"ARP":                    {Config{}, facts{proto: 0x0806, hatype: 1}, []byte{0, 1, 8, 0, 6, 4}, 0},
		"tagged, not IP":         {Config{}, facts{proto: 0x8100, hatype: 1}, []byte{0, 1, 8, 0, 6, 4}, 0},
		"loopback leaves":        {Config{}, facts{proto: 0x0800, hatype: 772, pkttype: 4}, syn4, 0},
		"loopback arrives":       {Config{}, facts{proto: 0x0800, hatype: 772}, syn4, snapTCP},
		"first fragment":         {Config{}, ether4, edited(datagram("10.0.0.1", "10.0.0.2", 6), func(b []byte) { b[6] = 0x20 }), snapTCP},
		"later fragment":         {Config{}, ether4, edited(datagram("10.0.0.1", "10.0.0.2", 6), func(b []byte) { b[7] = 1 }), 0},
		"do not fragment":        {Config{}, ether4, edited(datagram("10.0.0.1", "10.0.0.2", 6), func(b []byte) { b[6] = 0x40 }), snapTCP},
		"too short":              {Config{}, ether4, []byte{0x45, 0}, 0},
		"nothing":                {Config{}, ether4, nil, 0},
		"echo reply":             {Config{}, ether4, icmp4(0), 0},
		"unreachable":            {Config{}, ether4, icmp4(3), snapICMP},
		"echo":                   {Config{}, ether4, icmp4(8), 0},
		"time exceeded":          {Config{}, ether4, icmp4(11), snapICMP},
		"errors despite ports":   {port(1, 1), ether4, icmp4(11), snapICMP},
		"errors despite prefix":  {prefixes("192.0.2.0/24"), ether6, icmp6(3), snapICMP},
		"reserved ICMPv6":        {Config{}, ether6, icmp6(0), 0},
		"unreachable 6":          {Config{}, ether6, icmp6(1), snapICMP},
		"too big 6":              {Config{}, ether6, icmp6(2), snapICMP},
		"time exceeded 6":        {Config{}, ether6, icmp6(3), snapICMP},
		"parameter problem 6":    {Config{}, ether6, icmp6(4), 0},
		"echo 6":                 {Config{}, ether6, icmp6(128), 0},
		"neighbour solicitation": {Config{}, ether6, icmp6(135), 0},
		"neighbour advert":       {Config{}, ether6, icmp6(136), 0},
		"hop-by-hop":             {port(1, 1), ether6, datagram("fd00::1", "fd00::2", 0), snapICMP},
		"routing":                {Config{}, ether6, datagram("fd00::1", "fd00::2", 43), snapICMP},
		"fragment 6":             {Config{}, ether6, datagram("fd00::1", "fd00::2", 44), snapICMP},
		"destination options":    {Config{}, ether6, datagram("fd00::1", "fd00::2", 60), snapICMP},
		"OSPF":                   {Config{UDP: true}, ether4, datagram("10.0.0.1", "10.0.0.2", 89), 0},
		"UDP unasked":            {Config{}, ether4, udp4, 0},
		"UDP":                    {Config{UDP: true}, ether4, udp4, snapUDP},
		"UDP 6":                  {Config{UDP: true}, ether6, udp6, snapUDP},
		"TCP with UDP":           {Config{UDP: true}, ether6, syn6, snapTCP},
		"words that leave":       {Config{Names: true}, facts{proto: 0x0800, hatype: 1, pkttype: 4}, syn4, snapHello},
		"words that leave 6":     {Config{Names: true, UDP: true}, facts{proto: 0x86dd, hatype: 1, pkttype: 4}, syn6, snapHello},
		"words that come":        {Config{Names: true, UDP: true}, ether6, syn6, snapTCP},
		"words to a server":      {Config{Names: true, NamesIn: true}, ether4, syn4, snapHello},
		"words to a server 6":    {Config{Names: true, NamesIn: true}, ether6, syn6, snapHello},
		"words behind options":   {Config{Names: true, NamesIn: true}, ether4, options, snapHello},
		"to the last such port":  {Config{Names: true, NamesIn: true}, ether4, datagram("10.0.0.1", "10.0.0.2", protoTCP, portBytes(443, 32767)...), snapHello},
		"a download":             {Config{Names: true, NamesIn: true}, ether4, datagram("10.0.0.1", "10.0.0.2", protoTCP, portBytes(443, 32768)...), snapTCP},
		"a download's requests":  {Config{Names: true, NamesIn: true}, facts{proto: 0x0800, hatype: 1, pkttype: 4}, datagram("10.0.0.1", "10.0.0.2", protoTCP, portBytes(32768, 443)...), snapHello},
		"DNS answers beside":     {Config{Names: true, NamesIn: true}, ether4, datagram("10.0.0.1", "10.0.0.2", protoTCP, portBytes(53, 40000)...), snapWhole},
		"DNS answers over TCP":   {Config{Names: true}, ether4, datagram("10.0.0.1", "10.0.0.2", protoTCP, portBytes(53, 4000)...), snapWhole},
		"DNS answers over TCP 6": {Config{Names: true}, ether6, datagram("fd00::1", "fd00::2", protoTCP, portBytes(53, 4000)...), snapWhole},
		"UDP with words":         {Config{Names: true, UDP: true}, ether4, udp4, snapUDP},
		"hello in one packet":    {Config{Names: true, UDP: true}, leaves, udpOf(40000, 443, 0xc3, 1200), snapUDP},
		"hello of more packets":  {Config{Names: true, UDP: true}, leaves, udpOf(40000, 443, 0xc3, 2400), snapInitials},
		"the same, no names":     {Config{UDP: true}, leaves, udpOf(40000, 443, 0xc3, 2400), snapUDP},
		"upload of more packets": {Config{Names: true, UDP: true}, leaves, udpOf(40000, 443, 0x43, 2400), snapUDP},
		"empty datagram":         {Config{Names: true, UDP: true}, leaves, udpOf(40000, 443, 0, 0), snapUDP},
		"long DNS answer":        {Config{Names: true, UDP: true}, ether4, udpOf(53, 40000, 0, 2400), snapWhole},
		"datagram with payload":  {Config{Payload: true, UDP: true}, ether4, udpOf(443, 40000, 0x43, 1200), snapWhole},
		"question to itself":     {Config{Names: true}, facts{proto: 0x0800, hatype: 772}, datagram("127.0.0.1", "127.0.0.53", protoTCP, portBytes(40000, 53)...), snapHello},
		"words without UDP":      {Config{Names: true}, ether4, udp4, 0},
		"words of other ports":   {Config{Names: true, Ports: []PortRange{{9, 9}}}, facts{proto: 0x0800, hatype: 1, pkttype: 4}, syn4, 0},
		"destination port":       {port(443, 443), ether4, syn4, snapTCP},
		"source port":            {port(999, 1001), ether6, syn6, snapTCP},
		"below the ports":        {port(444, 999), ether4, syn4, 0},
		"between the ports":      {port(444, 999), ether6, syn6, 0},
		"behind options":         {port(443, 443), ether4, options, snapTCP},
		"UDP port":               {Config{UDP: true, Ports: []PortRange{{53, 53}}}, ether4, udp4, snapUDP},
		"prefix of source":       {prefixes("10.0.0.1/32"), ether4, syn4, snapTCP},
		"prefix of destination":  {prefixes("10.0.0.2/31"), ether4, syn4, snapTCP},
		"other prefix":           {prefixes("10.0.0.4/30"), ether4, syn4, 0},
		"everything":             {prefixes("0.0.0.0/0"), ether4, syn4, snapTCP},
		"other family":           {prefixes("10.0.0.0/8"), ether6, syn6, 0},
		"everything 6":           {prefixes("192.0.2.0/24", "::/0"), ether6, syn6, snapTCP},
		"host 6":                 {prefixes("fd00::2/128"), ether6, syn6, snapTCP},
		"other host 6":           {prefixes("fd00::3/128"), ether6, syn6, 0},
		"payload":                {Config{Payload: true}, ether4, syn4, snapWhole},
		"payload 6, narrowed":    {Config{Payload: true, UDP: true, Prefixes: prefixes("::/0").Prefixes}, ether6, syn6, snapWhole},
		"errors beside payload":  {Config{Payload: true}, ether4, icmp4(11), snapICMP},
		"mapped prefix":          {prefixes("::ffff:10.0.0.0/104"), ether4, syn4, snapTCP},
	} {
		t.Run(name, func(t *testing.T) {
			if got := machine(t, test.cfg)(test.f, test.ip); got != test.want {
				t.Errorf("keeps %d bytes, want %d", got, test.want)
			}
			if got := vmOf(t, assembled(test.cfg, nil, false, nil))(test.f, test.ip); got != test.want {
				t.Errorf("without a way of its own for what is usual: keeps %d bytes, want %d", got, test.want)
			}
		})
	}
}

func TestProgramOfInterfaces(t *testing.T) {
	var many []int
	for i := range 300 { // more than a conditional jump spans
		many = append(many, 10+i)
	}
	syn := datagram("10.0.0.1", "10.0.0.2", protoTCP)
	for _, indexes := range [][]int{{10, 309}, many} {
		run := machine(t, Config{}, indexes...)
		for index, want := range map[uint32]int{9: 0, 10: snapTCP, 309: snapTCP, 310: 0} {
			if got := run(facts{proto: 0x0800, hatype: 1, index: index}, syn); got != want {
				t.Errorf("interface %d of %d: keeps %d bytes, want %d", index, len(indexes), got, want)
			}
		}
	}
}

// Whatever the selection, the program passes what the plain words of Config say.
func TestProgramPassesWhatIsSelected(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	addr := func() netip.Addr {
		if rnd.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(4)), byte(rnd.IntN(4))})
		}
		a := netip.MustParseAddr("fd00::").As16()
		a[5], a[11], a[15] = byte(rnd.IntN(2)), byte(rnd.IntN(2)), byte(rnd.IntN(2))
		return netip.AddrFrom16(a)
	}
	for range 300 {
		cfg := Config{UDP: rnd.IntN(2) == 0}
		for range rnd.IntN(4) {
			a := addr()
			cfg.Prefixes = append(cfg.Prefixes, netip.PrefixFrom(a, rnd.IntN(a.BitLen()+1)))
		}
		for range rnd.IntN(4) {
			first := uint16(rnd.IntN(8))
			cfg.Ports = append(cfg.Ports, PortRange{first, first + uint16(rnd.IntN(3))})
		}
		run := machine(t, cfg)
		for range 50 {
			src, dst := addr(), addr()
			for src.Is4() != dst.Is4() {
				dst = addr()
			}
			sport, dport := uint16(rnd.IntN(10)), uint16(rnd.IntN(10))
			proto := []uint8{protoTCP, protoUDP}[rnd.IntN(2)]
			f := facts{proto: 0x0800, hatype: uint16(1 + rnd.IntN(2))} // with the Ethernet header, or another
			if src.Is6() {
				f.proto = 0x86dd
			}
			got := run(f, datagram(src.String(), dst.String(), proto, portBytes(sport, dport)...)) > 0
			if want := selected(cfg, proto, src, dst, sport, dport); got != want {
				t.Fatalf("%+v: protocol %d %v:%d to %v:%d passes: %v, want %v", cfg, proto, src, sport, dst, dport, got, want)
			}
		}
	}
}

func selected(cfg Config, proto uint8, src, dst netip.Addr, sport, dport uint16) bool {
	inside, asked := len(cfg.Prefixes) == 0, len(cfg.Ports) == 0
	for _, p := range cfg.Prefixes {
		inside = inside || p.Contains(src) || p.Contains(dst)
	}
	for _, r := range cfg.Ports {
		asked = asked || r.First <= sport && sport <= r.Last || r.First <= dport && dport <= r.Last
	}
	return inside && asked && (proto == protoTCP || cfg.UDP)
}

// Long selections narrow as long as the kernel takes them, and then not at all.
func TestLongSelections(t *testing.T) {
	f, syn := facts{proto: 0x86dd, hatype: 1}, datagram("fd00::1", "fd00::2", protoTCP, portBytes(60001, 60002)...)
	for _, test := range []struct {
		n    int
		want int
	}{{10, 0}, {200, 0}, {1000, snapTCP}} {
		var cfg Config
		for i := range test.n {
			cfg.Ports = append(cfg.Ports, PortRange{uint16(i), uint16(i)})
		}
		if got := machine(t, cfg)(f, syn); got != test.want {
			t.Errorf("%d ports: keeps %d bytes, want %d", test.n, got, test.want)
		}
	}
	for _, test := range []struct {
		n    int
		want int
	}{{10, 0}, {80, 0}, {400, snapTCP}} {
		var cfg Config
		for i := range test.n {
			cfg.Prefixes = append(cfg.Prefixes, netip.MustParsePrefix(fmt.Sprintf("fd01::%x/128", i)))
		}
		if got := machine(t, cfg)(f, syn); got != test.want {
			t.Errorf("%d prefixes: keeps %d bytes, want %d", test.n, got, test.want)
		}
	}
}
