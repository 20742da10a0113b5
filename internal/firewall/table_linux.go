package firewall

import (
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table, as nft(8) would list it:
//
//	table inet service_traceroute_0123456789abcdef {
//		flags owner
//		counter dropped { … }
//		set quotes4  { type integer; size 65536; flags timeout; timeout 30s }   destination, ports, 4 bytes, identification
//		set quotes6  { type integer; size 32768; flags timeout; timeout 30s }   destination, ports, sequence number
//		set payloads { type integer; size 32768; flags timeout; timeout 30s }
//		chain prerouting {
//			type filter hook prerouting priority -310; policy accept;
//			meta l4proto icmp goto errors4
//			meta l4proto ipv6-icmp goto errors6
//		}
//		chain errors4 { … @quotes4 …; … @payloads … }   each: counter name dropped drop
//		chain errors6 { … @quotes6 …; … @payloads … }
//	}
//
// The priority is before connection tracking's -200, which would translate an error and
// hand it to a host behind this one.
const (
	tablePrefix = "service_traceroute_"
	flagOwner   = 2 // NFT_TABLE_F_OWNER, Linux 5.12
	priority    = -310

	counter  = "dropped"
	quotes4  = "quotes4"
	quotes6  = "quotes6"
	payloads = "payloads"

	typeInteger = 4 // of nft(8), which would not list a set of a type unknown to it

	register0 = unix.NFT_REG32_00
)

// removeTable appends the transaction that removes the table and all that is in it.
func (m *messages) removeTable(table string) {
	m.transaction(func() {
		m.of(unix.NFT_MSG_DELTABLE, 0)
		m.text(unix.NFTA_TABLE_NAME, table)
		m.end()
	})
}

// appendTable appends the transaction that makes the table.
func (m *messages) appendTable(table string, life time.Duration) error {
	var err error
	m.transaction(func() {
		m.of(unix.NFT_MSG_NEWTABLE, flagCreate|flagExcl)
		m.text(unix.NFTA_TABLE_NAME, table)
		m.number(unix.NFTA_TABLE_FLAGS, flagOwner)
		m.end()
		m.of(unix.NFT_MSG_NEWOBJ, flagCreate)
		m.text(unix.NFTA_OBJ_TABLE, table)
		m.text(unix.NFTA_OBJ_NAME, counter)
		m.number(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
		m.nest(unix.NFTA_OBJ_DATA)
		m.unnest()
		m.end()
		m.set(table, quotes4, 1, quote4Len, 2*Capacity, life)
		m.set(table, quotes6, 2, quote6Len, Capacity, life)
		m.set(table, payloads, 3, payloadLen, Capacity, life)
		m.chain(table, "prerouting", true)
		m.chain(table, "errors4", false)
		m.chain(table, "errors6", false)
		for _, r := range rules() {
			if err == nil {
				err = m.rule(table, r.chain, r.exprs)
			}
		}
	})
	return err
}

func (m *messages) set(table, name string, id, key, size int, life time.Duration) {
	m.of(unix.NFT_MSG_NEWSET, flagCreate)
	m.text(unix.NFTA_SET_TABLE, table)
	m.text(unix.NFTA_SET_NAME, name)
	m.number(unix.NFTA_SET_FLAGS, unix.NFT_SET_TIMEOUT)
	m.number(unix.NFTA_SET_KEY_TYPE, typeInteger)
	m.number(unix.NFTA_SET_KEY_LEN, uint32(key))
	m.nest(unix.NFTA_SET_DESC)
	m.number(unix.NFTA_SET_DESC_SIZE, uint32(size))
	m.unnest()
	m.number(unix.NFTA_SET_ID, uint32(id))
	m.long(unix.NFTA_SET_TIMEOUT, uint64(life.Milliseconds()))
	m.end()
}

func (m *messages) chain(table, name string, hook bool) {
	m.of(unix.NFT_MSG_NEWCHAIN, flagCreate)
	m.text(unix.NFTA_CHAIN_TABLE, table)
	m.text(unix.NFTA_CHAIN_NAME, name)
	if hook {
		m.nest(unix.NFTA_CHAIN_HOOK)
		m.number(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_PRE_ROUTING)
		before := int32(priority)
		m.number(unix.NFTA_HOOK_PRIORITY, uint32(before))
		m.unnest()
		m.text(unix.NFTA_CHAIN_TYPE, "filter")
	}
	m.end()
}

func (m *messages) rule(table, chain string, exprs []expr.Any) error {
	m.of(unix.NFT_MSG_NEWRULE, flagCreate|flagAppend)
	m.text(unix.NFTA_RULE_TABLE, table)
	m.text(unix.NFTA_RULE_CHAIN, chain)
	m.nest(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range exprs {
		b, err := expr.Marshal(familyINet, e)
		if err != nil {
			return err
		}
		m.bytes(unix.NFTA_LIST_ELEM|nested, b)
	}
	m.unnest()
	m.end()
	return nil
}

// appendElements appends the message that adds keys of that length to a set, if there are
// any.
func (m *messages) appendElements(table, set string, keys []byte, length int) {
	if len(keys) == 0 {
		return
	}
	m.of(unix.NFT_MSG_NEWSETELEM, flagCreate)
	m.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	m.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for ; len(keys) >= length; keys = keys[length:] {
		m.nest(unix.NFTA_LIST_ELEM)
		m.nest(unix.NFTA_SET_ELEM_KEY)
		m.bytes(unix.NFTA_DATA_VALUE, keys[:length])
		m.unnest()
		m.unnest()
	}
	m.unnest()
	m.end()
}

// appendQuestion appends the message that asks for the counter.
func (m *messages) appendQuestion(table string) {
	m.of(unix.NFT_MSG_GETOBJ, 0)
	m.text(unix.NFTA_OBJ_TABLE, table)
	m.text(unix.NFTA_OBJ_NAME, counter)
	m.number(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	m.end()
}

type rule struct {
	chain string
	exprs []expr.Any
}

func rules() []rule {
	return []rule{
		{"prerouting", leads(unix.IPPROTO_ICMP, "errors4")},
		{"prerouting", leads(unix.IPPROTO_ICMPV6, "errors6")},
		{"errors4", drops(quotes4, is(header4, noOpts4), part(dst4, head4, 0), part(id4, 2, head4))},
		{"errors4", drops(payloads, is(header4, noOpts4), is(proto4, unix.IPPROTO_UDP), part(payload4, payloadLen, 0))},
		{"errors6", drops(quotes6, is(proto6, unix.IPPROTO_TCP), part(dst6, head6, 0))},
		{"errors6", drops(payloads, is(proto6, unix.IPPROTO_UDP), part(payload6, payloadLen, 0))},
	}
}

// leads sends packets of one protocol to a chain.
func leads(protocol byte, chain string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register0, Data: []byte{protocol}},
		&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain},
	}
}

// drops drops what has these parts, if the last of them are in the set.
func drops(set string, parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return append(all,
		&expr.Lookup{SourceRegister: register0, SetName: set},
		&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
}

// part loads bytes of an ICMP message to where they belong in a key.
func part(offset, length, at int) []expr.Any {
	return []expr.Any{&expr.Payload{
		Base: expr.PayloadBaseTransportHeader, Offset: uint32(offset), Len: uint32(length), DestRegister: register0 + uint32(at)/4,
	}}
}

// is compares one byte of an ICMP message.
func is(offset int, value byte) []expr.Any {
	return append(part(offset, 1, 0), &expr.Cmp{Op: expr.CmpOpEq, Register: register0, Data: []byte{value}})
}
