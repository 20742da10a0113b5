//go:build linux

package servicetraceroute_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// box makes a middlebox of a router: stateless rules of nf_tables for one family, which leave
// quotes as they are.
type box struct {
	f    *field
	node string
	ipv6 bool
}

// hook is where rules stand.
type hook struct {
	name     string
	num      *nftables.ChainHook
	priority nftables.ChainPriority
}

var (
	arriving = hook{"arriving", nftables.ChainHookPrerouting, -300}
	leaving  = hook{"leaving", nftables.ChainHookPostrouting, 300}
	own      = hook{"own", nftables.ChainHookOutput, 0} // what the router itself sends
)

// rules installs one rule for each list of expressions, until the test ends or remove is called.
func (b box) rules(t *testing.T, all map[hook][][]expr.Any) (remove func()) {
	t.Helper()
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "box"}
	if b.ipv6 {
		table.Family = nftables.TableFamilyIPv6
	}
	err := b.f.lab.Node(b.node).Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.AddTable(table)
		for h, rules := range all {
			chain := c.AddChain(&nftables.Chain{
				Name: h.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: h.num, Priority: nftables.ChainPriorityRef(h.priority),
			})
			for _, r := range rules {
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r})
			}
		}
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		err := b.f.lab.Node(b.node).Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			c.DelTable(table)
			return c.Flush()
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// is matches bytes of a header.
func is(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
	}
}

// protocol matches the transport.
func protocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

const (
	network   = expr.PayloadBaseNetworkHeader
	transport = expr.PayloadBaseTransportHeader
)

// toServer matches what the client sends to it.
func toServer(more ...expr.Any) []expr.Any {
	return append(append(protocol(unix.IPPROTO_TCP), is(transport, 2, binaryutil.BigEndian.PutUint16(443))...), more...)
}

func toClient(more ...expr.Any) []expr.Any {
	return append(append(protocol(unix.IPPROTO_TCP), is(transport, 0, binaryutil.BigEndian.PutUint16(443))...), more...)
}

// place is that of a field of a header, an even number of bytes at an even place, and the checksum that counts it.
type place struct {
	base     expr.PayloadBase
	offset   uint32
	size     int
	sum      expr.PayloadCsumType
	checksum uint32
	flags    uint32 // 1: the transport's counts it as well
}

// change keeps the bits of a mask and flips those of xor.
func (p place) change(mask, xor []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: p.base, Offset: p.offset, Len: uint32(p.size)},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(p.size), Mask: mask, Xor: xor},
		p.write(),
	}
}

func (p place) set(data []byte) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: 1, Data: data}, p.write()}
}

func (p place) write() expr.Any {
	return &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: 1, Base: p.base, Offset: p.offset, Len: uint32(p.size),
		CsumType: p.sum, CsumOffset: p.checksum, CsumFlags: p.flags,
	}
}

// Where fields are in the two headers. An IPv6 header has no checksum; those of its transports,
// which begin 40 bytes on, count the addresses.
func (b box) tos() place {
	if b.ipv6 {
		return place{base: network, size: 2}
	}
	return place{base: network, size: 2, sum: expr.CsumTypeInet, checksum: 10}
}

// setTOS sets the bits of the traffic class that are not kept.
func (b box) setTOS(keep, set uint8) []expr.Any {
	if b.ipv6 {
		return b.tos().change([]byte{0xf0 | keep>>4, keep<<4 | 0x0f}, []byte{set >> 4, set << 4})
	}
	return b.tos().change([]byte{0xff, keep}, []byte{0, set})
}

// address is the source's or destination's of what a transport carries, whose checksum is there.
func (b box) address(source bool, checksum uint32) place {
	at := map[[2]bool]uint32{{false, true}: 12, {false, false}: 16, {true, true}: 8, {true, false}: 24}[[2]bool{b.ipv6, source}]
	if b.ipv6 {
		return place{base: network, offset: at, size: 16, sum: expr.CsumTypeInet, checksum: 40 + checksum}
	}
	return place{base: network, offset: at, size: 4, sum: expr.CsumTypeInet, checksum: 10, flags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR}
}

// port is a TCP port.
func port(source bool) place {
	at := uint32(2)
	if source {
		at = 0
	}
	return place{base: transport, offset: at, size: 2, sum: expr.CsumTypeInet, checksum: 16}
}

// raise raises TTLs below a value to it.
func (b box) raise(ttl uint8) []expr.Any {
	at, p, data := uint32(8), place{base: network, offset: 8, size: 2, sum: expr.CsumTypeInet, checksum: 10}, []byte{ttl, unix.IPPROTO_TCP}
	if b.ipv6 {
		at, p, data = 7, place{base: network, offset: 6, size: 2}, []byte{unix.IPPROTO_TCP, ttl}
	}
	return append([]expr.Any{
		&expr.Payload{DestRegister: 1, Base: network, Offset: at, Len: 1}, &expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{ttl}},
	}, p.set(data)...)
}

// exceeded matches Time Exceeded.
func (b box) exceeded() []expr.Any {
	if b.ipv6 {
		return append(protocol(unix.IPPROTO_ICMPV6), is(transport, 0, []byte{3})...)
	}
	return append(protocol(unix.IPPROTO_ICMP), is(transport, 0, []byte{11})...)
}

// mark marks packets with 0 or 1, by chance, for rules of routing.
func mark() []expr.Any {
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: 2, Type: unix.NFT_NG_RANDOM}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

// detour routes what a rule of routing selects to a neighbour of the node. The rule is
// returned for those who take it away again.
func (b box) detour(t *testing.T, via string, selects func(*netlink.Rule)) *netlink.Rule {
	t.Helper()
	rule := netlink.NewRule()
	to := b.addr(via, b.node)
	family, any := netlink.FAMILY_V4, &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if b.ipv6 {
		family, any = netlink.FAMILY_V6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	err := b.f.lab.Node(b.node).Do(func() error {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err != nil {
			return err
		}
		const table = 100
		if err := netlink.RouteAdd(&netlink.Route{Dst: any, Gw: to.AsSlice(), LinkIndex: routes[0].LinkIndex, Table: table}); err != nil {
			return err
		}
		rule.Family, rule.Table, rule.Priority = family, table, 100
		selects(rule)
		return netlink.RuleAdd(rule)
	})
	if err != nil {
		t.Fatal(err)
	}
	return rule
}

// addr is a node's address on its link with another.
func (b box) addr(node, peer string) netip.Addr {
	for _, it := range b.f.lab.Layout().Nodes[node].Interfaces {
		if it.Peer.Node == peer {
			if b.ipv6 {
				return it.Addr6.Addr()
			}
			return it.Addr4.Addr()
		}
	}
	b.f.t.Fatalf("%s has no link to %s", node, peer)
	return netip.Addr{}
}

// iface is the name of a node's end of its link with another.
func (b box) iface(node, peer string) string {
	for _, it := range b.f.lab.Layout().Nodes[node].Interfaces {
		if it.Peer.Node == peer {
			return it.Name
		}
	}
	b.f.t.Fatalf("%s has no link to %s", node, peer)
	return ""
}
