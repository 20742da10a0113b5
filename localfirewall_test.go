//go:build linux

package servicetraceroute_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/wire"
)

// dropInvalid is what many hosts have: conntrack's INVALID does not leave. A packet
// socket passes it by, conntrack would see the answers.
func dropInvalid(t *testing.T, n *lab.Node) {
	t.Helper()
	err := n.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "local"})
		for _, hook := range []*nftables.ChainHook{nftables.ChainHookOutput, nftables.ChainHookInput} {
			chain := c.AddChain(&nftables.Chain{
				Name:  map[*nftables.ChainHook]string{nftables.ChainHookOutput: "output", nftables.ChainHookInput: "input"}[hook],
				Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
			})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitINVALID), Xor: make([]byte, 4)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
				&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// invalidDropped is what those rules have dropped.
func invalidDropped(t *testing.T, n *lab.Node) (packets uint64) {
	t.Helper()
	err := n.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "local"}
		for _, name := range []string{"output", "input"} {
			rules, err := c.GetRules(table, &nftables.Chain{Name: name, Table: table})
			if err != nil {
				return err
			}
			for _, r := range rules {
				for _, e := range r.Exprs {
					if counter, ok := e.(*expr.Counter); ok {
						packets += counter.Packets
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

// firewallDrops sends a probe as ours is, and some that are not, by a raw socket,
// which does not pass the firewall by as our packet socket does: only the wrong ones
// may be dropped, and they must be.
func (f *field) firewallDrops(t *testing.T, ipv6 bool) {
	t.Helper()
	f.t = t
	client := f.lab.Node("client")
	l := newLiar(t, client)
	l.mine = 2 // expires on its way
	f.connect(ipv6, nil).exchange(t)
	if err := l.learn(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if l.newest == nil || !l.newest.TCP.HaveUna {
		t.Fatal("the flow was not seen")
	}
	for i, c := range []struct {
		name   string
		change func(s *wire.TCPSegment)
		wrong  bool
	}{
		{"as ours", func(*wire.TCPSegment) {}, false},
		{"beyond the window", func(s *wire.TCPSegment) { s.Seq += 64 << 20 }, true},
		{"acknowledges what never came", func(s *wire.TCPSegment) { s.Ack += 64 << 20 }, true},
	} {
		s := l.honest(l.newest, 1+i)
		c.change(&s)
		before := invalidDropped(t, client)
		err := sendRaw(client, &s)
		time.Sleep(100 * time.Millisecond) // a router's answer, which passes the firewall as well
		dropped := invalidDropped(t, client) - before
		if c.wrong && (dropped != 1 || !errors.Is(err, unix.EPERM)) || !c.wrong && (dropped != 0 || err != nil) {
			t.Errorf("%s, %s: %d dropped, %v", familyName[ipv6], c.name, dropped, err)
		}
	}
}

// sendRaw sends a segment by a raw socket of the node.
func sendRaw(n *lab.Node, s *wire.TCPSegment) error {
	return n.Do(func() error {
		family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: s.Dst.Addr().As16()})
		if s.Dst.Addr().Is4() {
			family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: s.Dst.Addr().As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // with the IP header, raw(7)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, s.AppendTo(nil), 0, to)
	})
}
