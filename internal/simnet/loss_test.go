package simnet

import (
	"net/netip"
	"testing"

	"servicetraceroute/internal/wire"
)

// Where every packet may be lost, each flow loses other ones; where only data may, all
// flows lose the same.
func TestLossOfEachFlow(t *testing.T) {
	const flows, packets, share = 50, 40, 0.2
	fates := func(all bool) (same, lost int) {
		l := newLosses(1, 0)
		var first [packets]bool
		for i := range flows {
			tuple := Tuple{wire.ProtoTCP, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(40000+i)), netip.MustParseAddrPort("203.0.113.7:443")}
			for k := range packets {
				hit := l.strikes(&packet{isTCP: true, tuple: tuple, tcp: wire.TCP{Seq: uint32(k * block), Flags: wire.ACK, PayloadLen: block}}, share, all)
				if hit {
					lost++
				}
				if i == 0 {
					first[k] = hit
				} else if first[k] == hit {
					same++
				}
			}
		}
		return same, lost
	}
	if same, _ := fates(false); same != (flows-1)*packets {
		t.Errorf("of %d packets %d share the fate of the first flow's", (flows-1)*packets, same)
	}
	same, lost := fates(true)
	if n := float64(flows * packets); float64(lost) < (share-0.05)*n || float64(lost) > (share+0.05)*n {
		t.Errorf("%d of %v are lost", lost, n)
	}
	// Of two that are lost independently, 0.2*0.2 + 0.8*0.8 = 68 % share their fate.
	if n := float64((flows - 1) * packets); float64(same) < 0.55*n || float64(same) > 0.8*n {
		t.Errorf("%d of %v share the fate of the first flow's", same, n)
	}
}
