package evidence

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"servicetraceroute/internal/capture"
)

// file is the pcapng file: one section, one interface description for each tap,
// packets as enhanced packet blocks, one statistics block for each interface.
type file struct {
	out     io.Writer
	opts    Options
	ng      *pcapgo.NgWriter
	ids     map[tap]int
	counts  []uint64 // packets, by id
	started time.Time
}

const (
	sectionComment = "Flows traced by service-traceroute, from the IP header on. Probes and replies have comments."
	headersOnly    = " Headers only: payload is cut, also inside ICMP errors."
	withPayload    = " With payload, at most 128 KiB a packet."
)

// open starts the section with its first interface; pcapgo needs one to begin.
func (f *file) open(t tap) error {
	section := pcapgo.NgSectionInfo{Application: f.opts.Application, Comment: sectionComment + headersOnly}
	if f.opts.Payload {
		section.Comment = sectionComment + withPayload
	}
	f.ids, f.counts, f.started = map[tap]int{t: 0}, []uint64{0}, time.Now()
	var err error
	f.ng, err = pcapgo.NewNgWriterInterface(f.out, describe(t), pcapgo.NgWriterOptions{SectionInfo: section})
	return err
}

func describe(t tap) pcapgo.NgInterface {
	return pcapgo.NgInterface{Name: t.name, LinkType: layers.LinkTypeRaw, TimestampResolution: 9}
}

// id returns the number of an interface, describing it first if it is new.
func (f *file) id(t tap) (int, error) {
	if f.ng == nil {
		return 0, f.open(t)
	}
	if id, ok := f.ids[t]; ok {
		return id, nil
	}
	id, err := f.ng.AddInterface(describe(t))
	if err == nil {
		f.ids[t] = id
		f.counts = append(f.counts, 0)
	}
	return id, err
}

// packet writes one.
func (f *file) packet(e *entry) error {
	id, err := f.id(e.tap)
	if err != nil {
		return err
	}
	f.counts[id]++
	var options pcapgo.NgPacketOptions
	switch e.Packet.Direction {
	case capture.Incoming:
		options.Flags = &pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionInbound}
	case capture.Outgoing:
		options.Flags = &pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionOutbound}
	}
	if c := e.comment(); c != "" {
		options.Comments = []string{c}
	}
	return f.ng.WritePacketWithOptions(gopacket.CaptureInfo{
		Timestamp: e.Packet.Time, CaptureLength: len(e.Packet.Data), Length: max(e.Packet.Len, len(e.Packet.Data)), InterfaceIndex: id,
	}, e.Packet.Data, options)
}

// flush hands everything to the reader.
func (f *file) flush() error {
	if f.ng == nil {
		return nil
	}
	return f.ng.Flush()
}

// finish ends the file with what each interface brought and what was dropped.
// A file without packets is a valid file.
func (f *file) finish(dropped map[tap]uint64) error {
	taps := slices.SortedFunc(maps.Keys(dropped), func(a, b tap) int { return cmp.Compare(a.index, b.index) })
	if f.ng == nil && len(taps) == 0 {
		taps = []tap{{name: "any"}}
	}
	for _, t := range taps {
		if _, err := f.id(t); err != nil {
			return err
		}
	}
	now := time.Now()
	for _, t := range slices.SortedFunc(maps.Keys(f.ids), func(a, b tap) int { return cmp.Compare(f.ids[a], f.ids[b]) }) {
		id := f.ids[t]
		n := dropped[t]
		err := f.ng.WriteInterfaceStats(id, pcapgo.NgInterfaceStatistics{
			LastUpdate: now, StartTime: f.started, EndTime: now, PacketsReceived: f.counts[id] + n, PacketsDropped: n,
		})
		if err != nil {
			return err
		}
	}
	return f.flush()
}
