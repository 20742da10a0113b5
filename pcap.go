package servicetraceroute

import (
	"fmt"
	"runtime/debug"
	"time"

	"servicetraceroute/internal/evidence"
	"servicetraceroute/trace"
)

// keepsPayload reports whether packets are needed whole.
func (c Config) keepsPayload() bool { return c.Pcap != nil && c.PcapPayload }

// openPcap starts the writer of Config.Pcap.
func (t *Tracer) openPcap() {
	if t.cfg.Pcap == nil {
		return
	}
	t.pcap = evidence.New(t.cfg.Pcap, evidence.Options{
		Payload: t.cfg.PcapPayload, Application: "service-traceroute " + moduleVersion(), Interface: t.source.InterfaceName,
		Failed: func(err error) { t.log.Warn("no more packets are kept, tracing goes on", "err", err) },
	})
}

// keep hands over what the engine said of packets, before the batch goes back to
// the source.
func (t *Tracer) keep(now time.Time) {
	if t.pcap != nil {
		t.pcap.Put(now, t.engine.Evidence())
	}
}

// closePcap ends the file.
func (t *Tracer) closePcap() {
	if t.pcap == nil {
		return
	}
	if err := t.pcap.Close(); err != nil {
		t.pcapErr = fmt.Errorf("servicetraceroute: Config.Pcap: %w", err)
	}
	if s := t.pcapStats(); s.Dropped > 0 {
		t.log.Warn("packets are missing in Config.Pcap", "written", s.Written, "dropped", s.Dropped)
	}
}

// pcapStats are the counters of a record; nil when no packets are kept.
func (t *Tracer) pcapStats() *trace.PcapStats {
	if t.pcap == nil {
		return nil
	}
	c := t.pcap.Counts()
	return &trace.PcapStats{Written: c.Packets, Dropped: c.Dropped + t.engine.EvidenceRefused()}
}

// moduleVersion is the version of this module in the running program.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	const path = "servicetraceroute"
	if info.Main.Path == path {
		return info.Main.Version
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return "unknown"
}
