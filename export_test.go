package servicetraceroute

import (
	"encoding/binary"
	"net/netip"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/firewall"
	"servicetraceroute/internal/wire"
)

// FillRule leaves no room for a probe more in the rule that drops ICMP errors about them.
func (t *Tracer) FillRule() (err error) {
	all := make([][]byte, firewall.Capacity)
	for i := range all {
		all[i] = (&wire.UDPProbe{
			Src: netip.MustParseAddrPort("[::1]:1"), Dst: netip.MustParseAddrPort("[::1]:2"),
			Payload: binary.BigEndian.AppendUint64([]byte{5}, uint64(i)),
		}).AppendTo(nil)
	}
	_ = t.do(func(time.Time) { err = t.rule.rule.Add(all...) })
	return err
}

// Watches is the number of watches that are not over.
func (t *Tracer) Watches() (n int) {
	_ = t.do(func(time.Time) { n = len(t.watches) })
	return n
}

// Held is what the engine holds now.
type Held = engine.Held

// Held tells what the tracer's engine holds now.
func (t *Tracer) Held() (h Held) {
	_ = t.do(func(now time.Time) { h = t.engine.Held(now) })
	return h
}

// Seeded leaves nothing to chance: a Tracer with this Config does the same whenever it sees the
// same packets at the same times.
func Seeded(cfg Config, seed [32]byte) Config {
	cfg.seed = seed
	return cfg
}

// FewFrom has a packet socket show few flows from so many packets a second on.
func FewFrom(cfg Config, packets int) Config {
	cfg.few = packets
	return cfg
}
