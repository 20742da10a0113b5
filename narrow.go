package servicetraceroute

import "servicetraceroute/internal/capture"

// narrow lets the kernel's filter pass only what some watch may select. Without
// a watch everything passes, so that flows are known when one begins. In the same
// way only those owners are looked for that some watch depends on.
func (t *Tracer) narrow() {
	t.wantOwners()
	ring, ok := t.source.(interface{ SetFilter(capture.Config) error })
	if !ok {
		return
	}
	none := len(t.watches) == 0
	cfg := capture.Config{Payload: t.cfg.keepsPayload(), UDP: none, Names: none, NamesIn: none}
	for w := range t.watches {
		cfg.Names = cfg.Names || w.Selector.ByName()
		cfg.NamesIn = cfg.NamesIn || w.Selector.ByName() && w.Selector.Accepted()
		// DNS answers come over UDP.
		cfg.UDP = cfg.UDP || w.Selector.WantsUDP() || cfg.Names && !t.cfg.NoDNS
	}
	translates := t.sockets != nil && t.sockets.Tracks()
	for w := range t.watches {
		prefixes := w.Selector.Prefixes()
		if translates && w.Selector.ByOwner() {
			prefixes = nil // what its process asked for is another address on the wire
		}
		if len(prefixes) == 0 { // it may select flows to anywhere
			cfg.Prefixes = nil
			break
		}
		cfg.Prefixes = append(cfg.Prefixes, prefixes...)
	}
	if err := ring.SetFilter(cfg); err != nil {
		t.log.Warn("the capture filter stays as it was", "err", err)
	} else if len(cfg.Prefixes) > 0 {
		t.engine.Hidden(cfg.Prefixes)
	}
}
