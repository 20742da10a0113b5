package servicetraceroute

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"

	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/packetfile"
	"servicetraceroute/internal/replay"
	"servicetraceroute/trace"
)

// ErrFormat: what a Replay reads is neither pcap nor pcapng.
var ErrFormat = packetfile.ErrFormat

// Replay is a capture file in place of a Tracer: it needs no privileges and no Linux,
// and sends nothing. Its clock is that of the packets; the file is read as fast as its
// reader yields, with bounded memory whatever its length.
//
// Flows are identified as a Tracer does it. The probes in the file, this program's or
// others' like them, are told by what they are on the wire, and matched with the replies
// as a Tracer matches its own: a hop is shown only where an ICMP error quotes a probe
// that is in the file, too. What the file does not tell stays zero or is left out:
// processes, Hop.Deferred, why a trace that was cut short had ended.
type Replay struct {
	// Packets is a pcap or pcapng file. It is not closed.
	Packets io.Reader
	// Local are the addresses of the near end of flows, from which probes go; they
	// decide, whatever the file says. Without them the file does where it can (pcapng
	// with directions, Linux cooked captures); elsewhere the client is near: who sent the
	// SYN, else whose port is 32768 or above, else who speaks first.
	Local []netip.Prefix
	// All selects the flows that the Selection does not name, too, as does a Selection that
	// names nothing: their service is what their client says, else the name by which DNS
	// answers in the file give their address, else the address.
	All bool
	// NoDNS leaves out what DNS answers in the file say.
	NoDNS bool
	// Label is put into every record as it is.
	Label string
	// Progress, if there is one, is called for each packet with its number, from 1 on.
	Progress func(packets uint64)
}

// Watch reads the file to its end and yields what a Tracer's Watch does: a *trace.Flow
// for each flow that is selected, a *trace.Trace for each trace in the file, when it is
// over, and at the end a *trace.Stats, whose Probes.Sent are those in the file. Times are
// the file's. It may be called once.
//
// An error is the last of the sequence and comes with a nil record, after all that was
// read before. It matches ErrFormat for what is no capture file and io.ErrUnexpectedEOF
// for one that was cut short; others are the reader's own. When ctx ends, which is no
// error, the traces in progress are yielded with what they found; a Read that waits is
// not woken.
//
// Of the Selection the fields count that select, beside Processes, PIDs, Cgroups and Run,
// which are an error; of its Params Algorithm, Timeout, Probes, MaxSilent and Borders, which
// should be those of the traces in the file. Names are not resolved.
func (r Replay) Watch(ctx context.Context, sel Selection) iter.Seq2[trace.Event, error] {
	return func(yield func(trace.Event, error) bool) {
		p, err := r.open(sel)
		if err != nil {
			yield(nil, err)
			return
		}
		hand := func() bool {
			for _, rec := range p.Records() {
				if !yield(rec.Event, nil) {
					return false
				}
			}
			return true
		}
		for err == nil && ctx.Err() == nil {
			err = p.Next()
			if r.Progress != nil && err == nil {
				r.Progress(p.Packets())
			}
			if !hand() {
				return
			}
		}
		why := trace.StopCancelled
		if ctx.Err() != nil {
			why, err = stopOf(ctx), nil
		}
		p.End(why)
		nothing := p.Packets() == 0 && errors.Is(err, ErrFormat)
		if !hand() || !nothing && !yield(p.Stats(), nil) {
			return
		}
		if err != nil && err != io.EOF {
			yield(nil, fmt.Errorf("servicetraceroute: Replay.Packets: %w", err))
		}
	}
}

// open checks what is asked for and turns it into the engine's terms.
func (r Replay) open(sel Selection) (*replay.Player, error) {
	if r.Packets == nil {
		return nil, errors.New("servicetraceroute: Replay.Packets: there are none")
	}
	if sel.ByProcess() {
		return nil, fmt.Errorf("servicetraceroute: Selection by process: a file does not tell it: %w", errors.ErrUnsupported)
	}
	local, err := ordinary(r.Local)
	if err != nil {
		return nil, fmt.Errorf("servicetraceroute: Replay.Local: %w", err)
	}
	w, err := sel.terms(Config{}, nil)
	if err != nil {
		return nil, err
	}
	w.Selector.All = r.All || len(sel.Hosts)+len(sel.Services)+len(sel.Match) == 0
	w.StopNewAfter = 0
	w.Policy = engine.Policy{Every: -1, Params: engine.ReplayParams(w.Params)}
	for name, p := range w.Policies {
		w.Policies[name] = &engine.Policy{Every: -1, Params: engine.ReplayParams(p.Params)}
	}
	cfg := engine.Config{Rate: defaultRate, HopRate: defaultHopRate, Label: r.Label, NoDNS: r.NoDNS, Local: engine.Local(local)}
	if _, err := crand.Read(cfg.Seed[:]); err != nil {
		return nil, err
	}
	return replay.New(r.Packets, cfg, w), nil
}
