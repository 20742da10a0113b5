// Package replay drives an engine with a capture file: with its packets and with their
// times, which are the only clock. It waits for nothing and holds one packet.
package replay

import (
	"fmt"
	"io"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/packetfile"
	"servicetraceroute/trace"
)

const (
	// Packets of several interfaces or processors may be out of order by less; beyond, the
	// clock of who captured was set back, or another capture begins.
	stepBack = 5 * time.Second
	// What a file says of when its capture ended is believed as far as this.
	tail = time.Minute
)

// Player plays one file. It is not safe for concurrent use.
type Player struct {
	in      *packetfile.Reader
	engine  *engine.Engine // nil before the first packet
	config  engine.Config
	watch   *engine.Watch
	now     time.Time // the latest of the packets' times
	packets uint64
	batch   [1]capture.Packet
}

// New returns a player of in for one watch. Of the configuration Replay and InterfaceName
// are the player's.
func New(in io.Reader, cfg engine.Config, w *engine.Watch) *Player {
	p := &Player{in: packetfile.NewReader(in), config: cfg, watch: w}
	p.config.Replay, p.config.InterfaceName = true, p.name
	return p
}

func (p *Player) name(number int) string {
	i, _ := p.in.Interface(number)
	return i.Name
}

// Next takes in one packet, after all that was due before it. It returns io.EOF at the
// end and otherwise what packetfile does; a file without a byte is none.
func (p *Player) Next() error {
	packet, err := p.in.Next()
	if err == io.EOF && p.in.Format() == "" {
		return fmt.Errorf("no bytes: %w", packetfile.ErrFormat)
	}
	if err != nil {
		return err
	}
	p.packets++
	p.start(packet.Time)
	if packet.Time.Before(p.now.Add(-stepBack)) {
		p.engine.Rewind(p.now, packet.Time)
		p.now = packet.Time
	}
	p.until(packet.Time)
	p.batch[0] = packet
	p.engine.Step(p.now, p.batch[:])
	return nil
}

// Packets is the number of those that were taken in.
func (p *Player) Packets() uint64 { return p.packets }

// start makes the engine with the first packet, with which the file's time begins.
func (p *Player) start(at time.Time) {
	if p.engine == nil {
		p.engine = engine.New(at, p.config)
		p.engine.Add(at, p.watch)
		p.now = at
	}
}

// until lets time go on to at, from one thing that is due to the next.
func (p *Player) until(at time.Time) {
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

// End stops the traces that are not over: because the file ends (then as late as the file
// says its capture did), or for another reason.
func (p *Player) End(why trace.Stop) {
	p.start(time.Now()) // of a file without packets
	if until := p.in.Until(); until.After(p.now) && until.Before(p.now.Add(tail)) {
		p.until(until)
	}
	p.engine.Step(p.now, nil)
	p.engine.Remove(p.now, p.watch, why)
}

// Records hands out what was found since the last call.
func (p *Player) Records() []engine.Record {
	if p.engine == nil {
		return nil
	}
	return p.engine.Records()
}

// Stats are the counters after End.
func (p *Player) Stats() *trace.Stats {
	c := p.in.Counts()
	lost := c.Cut + c.LinkType + c.NoInterface + c.TooLong + c.Lost
	p.engine.Counted(c.Packets+lost, lost)
	s := p.engine.Stats(p.now)
	s.Backend, s.Reason = "file", "packets of a "+p.in.Format()+" file"
	return s
}
