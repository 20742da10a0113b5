//go:build linux

package lab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table (family inet) that holds what a node filters
// and translates.
const tableName = "lab"

// installFilters sets all of a node's rules in one transaction.
func installFilters(c nodeConfig) error {
	if c.Firewall == nil && c.NAT == nil && !c.Silent {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := conn.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	if c.Firewall != nil {
		addFirewall(conn, t, *c.Firewall)
	}
	if c.NAT != nil {
		addNAT(conn, t, *c.NAT)
	}
	if c.Silent {
		addSilence(conn, t)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// ruleChain adds rules that count and end in a verdict, each under a name.
type ruleChain struct {
	conn *nftables.Conn
	c    *nftables.Chain
}

func (c ruleChain) rule(name string, verdict expr.VerdictKind, matches ...[]expr.Any) {
	c.add(name, &expr.Verdict{Kind: verdict}, matches...)
}

func (c ruleChain) add(name string, last expr.Any, matches ...[]expr.Any) {
	var all []expr.Any
	for _, m := range matches {
		all = append(all, m...)
	}
	c.conn.AddRule(&nftables.Rule{
		Table: c.c.Table, Chain: c.c, Exprs: append(all, &expr.Counter{}, last),
		UserData: userdata.AppendString(nil, userdata.TypeComment, name),
	})
}

// addFirewall is scenario.Firewall. In nft(8)'s words:
//
//	chain forward {
//		type filter hook forward priority filter; policy drop
//		ct state established,related accept
//		ct state invalid drop
//		ct state new iifname INSIDE accept
//		ct state new tcp flags & (fin|syn|rst|ack) == syn tcp dport PORT accept
//		drop
//	}
func addFirewall(conn *nftables.Conn, t *nftables.Table, f firewallConfig) {
	policy := nftables.ChainPolicyDrop
	c := ruleChain{conn, conn.AddChain(&nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})}
	c.rule(RuleEstablished, expr.VerdictAccept, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED))
	c.rule(RuleInvalid, expr.VerdictDrop, ctState(expr.CtStateBitINVALID))
	if f.Inside != "" {
		c.rule(RuleInside, expr.VerdictAccept, ctState(expr.CtStateBitNEW), interfaceIs(expr.MetaKeyIIFNAME, f.Inside))
	}
	for _, port := range f.AllowTCP {
		c.rule(RuleAllowed, expr.VerdictAccept, ctState(expr.CtStateBitNEW), protocolIs(unix.IPPROTO_TCP), isSYN(),
			transportIs(2, binaryutil.BigEndian.PutUint16(port)))
	}
	// The policy would drop it as well, but uncounted.
	c.rule(RuleDropped, expr.VerdictDrop)
}

// addNAT is scenario.NAT. A chain of family inet translates both families;
// masquerade takes the address of the interface that the packet leaves by.
func addNAT(conn *nftables.Conn, t *nftables.Table, n natConfig) {
	c := ruleChain{conn, conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})}
	masquerade := &expr.Masq{FullyRandom: n.FullyRandom}
	c.add(RuleMasquerade, masquerade, familyIs(unix.NFPROTO_IPV4), interfaceIs(expr.MetaKeyOIFNAME, n.Outside))
	if n.IPv6 {
		c.add(RuleMasquerade, masquerade, familyIs(unix.NFPROTO_IPV6), interfaceIs(expr.MetaKeyOIFNAME, n.Outside))
	}
}

// addSilence drops the errors that a router would send: time exceeded and
// unreachable (RFC 792, RFC 4443). "Fragmentation needed" and "packet too big"
// still go out, for without them larger packets would vanish as well.
func addSilence(conn *nftables.Conn, t *nftables.Table) {
	c := ruleChain{conn, conn.AddChain(&nftables.Chain{
		Name: "silent", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})}
	icmp, icmpv6 := protocolIs(unix.IPPROTO_ICMP), protocolIs(unix.IPPROTO_ICMPV6)
	c.rule(RuleSilenced, expr.VerdictDrop, icmp, transportIs(0, []byte{11}))
	c.rule("fragmentation needed", expr.VerdictAccept, icmp, transportIs(0, []byte{3, 4}))
	c.rule(RuleSilenced, expr.VerdictDrop, icmp, transportIs(0, []byte{3}))
	c.rule(RuleSilenced, expr.VerdictDrop, icmpv6, transportIs(0, []byte{3}))
	c.rule(RuleSilenced, expr.VerdictDrop, icmpv6, transportIs(0, []byte{1}))
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func protocolIs(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func familyIs(f byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}},
	}
}

func interfaceIs(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded},
	}
}

// transportIs compares bytes of the transport header.
func transportIs(offset uint32, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
	}
}

// isSYN matches TCP segments that open a connection: of FIN, SYN, RST and ACK
// (bits 0, 1, 2 and 4 of the header's byte 13, RFC 9293) only SYN is set.
func isSYN() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
	}
}
