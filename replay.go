package servicetraceroute

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/packetfile"
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

const (
	// Packets of several interfaces or processors may be out of order by less; beyond, the
	// clock of who captured was set back, or another capture begins.
	replayStepBack = 5 * time.Second
	// What a file says of when its capture ended is believed as long as this.
	replayTail = time.Minute
)

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
// which are an error; of its Params Timeout, Probes, MaxSilent and Borders, which should be
// those of the traces in the file. Names are not resolved.
func (r Replay) Watch(ctx context.Context, sel Selection) iter.Seq2[trace.Event, error] {
	return func(yield func(trace.Event, error) bool) {
		p, err := r.open(sel)
		if err != nil {
			yield(nil, err)
			return
		}
		for err == nil && ctx.Err() == nil {
			err = p.next()
			if !p.deliver(yield) {
				return
			}
		}
		if ctx.Err() != nil {
			err = nil
		}
		empty := p.packets == 0 && errors.Is(err, ErrFormat)
		p.end(ctx)
		if !p.deliver(yield) || !empty && !yield(p.stats(), nil) {
			return
		}
		if err != nil && err != io.EOF {
			yield(nil, fmt.Errorf("servicetraceroute: Replay.Packets: %w", err))
		}
	}
}

// player drives an engine with a file's packets and their times.
type player struct {
	Replay
	in      *packetfile.Reader
	engine  *engine.Engine
	watch   *engine.Watch
	config  engine.Config
	now     time.Time // the latest of the packets' times
	packets uint64
	batch   [1]capture.Packet
}

func (r Replay) open(sel Selection) (*player, error) {
	if r.Packets == nil {
		return nil, errors.New("servicetraceroute: Replay.Packets: there are none")
	}
	if sel.byOwner() {
		return nil, fmt.Errorf("servicetraceroute: Selection by process: a file does not tell it: %w", errors.ErrUnsupported)
	}
	local, err := ordinary(r.Local)
	if err != nil {
		return nil, fmt.Errorf("servicetraceroute: Replay.Local: %w", err)
	}
	w, err := sel.terms(Config{Logger: slog.New(slog.DiscardHandler)}, nil)
	if err != nil {
		return nil, err
	}
	w.Selector.All = r.All || len(sel.Hosts)+len(sel.Services) == 0
	w.Every, w.Retrace, w.StopNewAfter, w.OnPayload, w.Per = -1, 0, 0, false, PerFlow
	w.Params = engine.ReplayParams(w.Params)
	for name, p := range maps.Clone(w.ServiceParams) {
		w.ServiceParams[name] = engine.ReplayParams(p)
	}
	p := &player{Replay: r, in: packetfile.NewReader(r.Packets), watch: w}
	p.config = engine.Config{
		Rate: defaultRate, HopRate: defaultHopRate, Label: r.Label, NoDNS: r.NoDNS, Replay: true,
		Local: engine.Local(local), InterfaceName: p.interfaceName,
	}
	if _, err := crand.Read(p.config.Seed[:]); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *player) interfaceName(number int) string {
	i, _ := p.in.Interface(number)
	return i.Name
}

// next takes in one packet, after all that was due before it.
func (p *player) next() error {
	packet, err := p.in.Next()
	if err == io.EOF && p.in.Format() == "" {
		return fmt.Errorf("no bytes: %w", ErrFormat)
	}
	if err != nil {
		return err
	}
	p.packets++
	if p.Progress != nil {
		p.Progress(p.packets)
	}
	p.start(packet.Time)
	if packet.Time.Before(p.now.Add(-replayStepBack)) {
		p.engine.Rewind(p.now, packet.Time)
		p.now = packet.Time
	}
	p.until(packet.Time)
	p.batch[0] = packet
	p.engine.Step(p.now, p.batch[:])
	return nil
}

// start makes the engine with the first packet: the file's time begins then.
func (p *player) start(at time.Time) {
	if p.engine == nil {
		p.engine = engine.New(at, p.config)
		p.engine.Add(at, p.watch)
		p.now = at
	}
}

// until lets time go on to at, from one thing that is due to the next.
func (p *player) until(at time.Time) {
	for {
		due, ok := p.engine.Due()
		if !ok || due.After(at) {
			break
		}
		if due.After(p.now) {
			p.now = due
		}
		p.engine.Step(p.now, nil)
	}
	if at.After(p.now) {
		p.now = at
	}
}

// end stops the traces that are not over at the file's end, or at that of the capture
// where the file tells it.
func (p *player) end(ctx context.Context) {
	p.start(time.Now()) // of a file without packets
	if until := p.in.Until(); ctx.Err() == nil && until.After(p.now) && until.Before(p.now.Add(replayTail)) {
		p.until(until)
	}
	p.engine.Step(p.now, nil)
	why := trace.StopCancelled
	if ctx.Err() != nil {
		why = stopOf(ctx)
	}
	p.engine.Remove(p.now, p.watch, why)
}

// deliver yields what was found; false when no more is wanted.
func (p *player) deliver(yield func(trace.Event, error) bool) bool {
	if p.engine == nil {
		return true
	}
	for _, rec := range p.engine.Records() {
		if !yield(rec.Event, nil) {
			return false
		}
	}
	return true
}

func (p *player) stats() *trace.Stats {
	c := p.in.Counts()
	lost := c.Cut + c.LinkType + c.NoInterface + c.TooLong + c.Lost
	p.engine.Counted(c.Packets+lost, lost)
	s := p.engine.Stats(p.now)
	s.Backend, s.Reason = "file", "packets of a "+p.in.Format()+" file"
	return s
}
