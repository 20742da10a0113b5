package servicetraceroute_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// pcapOf is a pcap file of packets from the IP header on, a millisecond apart.
func pcapOf(packets ...[]byte) []byte {
	var b []byte
	for _, v := range []uint32{0xa1b2c3d4, 2 | 4<<16, 0, 0, 1 << 18, 101} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	for i, p := range packets {
		for _, v := range []uint32{1_700_000_000, uint32(i) * 1000, uint32(len(p)), uint32(len(p))} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		b = append(b, p...)
	}
	return b
}

// probed is a file of one flow with one probe in it, which a router answers.
func probed() []byte {
	const syn, ack, psh = 0x02, 0x10, 0x08
	probe := segment(client, server, 1, 1000-7, 5201, ack, 0)
	return pcapOf(
		segment(client, server, 64, 1000, 0, syn, 0),
		segment(server, client, 62, 5000, 1001, syn|ack, 0),
		segment(client, server, 64, 1001, 5001, ack, 0),
		segment(client, server, 64, 1001, 5001, ack|psh, 100),
		segment(server, client, 62, 5001, 1101, ack|psh, 200),
		probe,
		timeExceeded(routers[0], 64, probe),
		segment(client, server, 64, 1101, 5201, ack, 0),
	)
}

// A capture file gives flows and the traces in it.
func ExampleReplay() {
	replay := servicetraceroute.Replay{Packets: bytes.NewReader(probed())}
	for ev, err := range replay.Watch(context.Background(), servicetraceroute.Selection{}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		switch ev := ev.(type) {
		case *trace.Flow:
			fmt.Println(ev.FlowKey, ev.State, "by", ev.Service.By)
		case *trace.Trace:
			fmt.Println(ev)
		case *trace.Stats:
			fmt.Println(ev.Packets.Seen, "packets,", ev.Replies.Matched, "reply")
		}
	}
	// Output:
	// tcp 192.0.2.1:40000 > 203.0.113.9:443 matched by address
	// tcp 192.0.2.1:40000 > 203.0.113.9:443: 1 192.0.2.254 (cancelled)
	// 8 packets, 1 reply
}

// records reads a file to its end or its error.
func records(ctx context.Context, r servicetraceroute.Replay, sel servicetraceroute.Selection) (all []trace.Event, err error) {
	for ev, e := range r.Watch(ctx, sel) {
		if e != nil {
			return all, e
		}
		all = append(all, ev)
	}
	return all, nil
}

// What came before the place where a file is broken is yielded, the counters too; then
// the error.
func TestReplayBroken(t *testing.T) {
	whole := probed()
	for _, test := range []struct {
		name    string
		file    []byte
		want    error
		records int
	}{
		{"whole", whole, nil, 3},
		{"cut short", whole[:len(whole)-3], io.ErrUnexpectedEOF, 3},
		{"cut in the header", whole[:11], io.ErrUnexpectedEOF, 1},
		{"no packets", whole[:24], nil, 1},
		{"nothing", nil, servicetraceroute.ErrFormat, 0},
		{"words", []byte("the words of somebody"), servicetraceroute.ErrFormat, 0},
	} {
		all, err := records(t.Context(), servicetraceroute.Replay{Packets: bytes.NewReader(test.file)}, servicetraceroute.Selection{})
		if !errors.Is(err, test.want) || len(all) != test.records {
			t.Errorf("%s: %d records, %v", test.name, len(all), err)
		}
		if len(all) > 0 {
			if s, ok := all[len(all)-1].(*trace.Stats); !ok || s.Backend != "file" {
				t.Errorf("%s: %+v is the last", test.name, all[len(all)-1])
			}
		}
	}
	broken := errors.New("no more")
	all, err := records(t.Context(), servicetraceroute.Replay{Packets: io.MultiReader(bytes.NewReader(whole), failing{broken})}, servicetraceroute.Selection{})
	if !errors.Is(err, broken) || len(all) != 3 {
		t.Errorf("%d records, %v", len(all), err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// What a file cannot tell is an error; a selection without effect is none.
func TestReplaySelection(t *testing.T) {
	file := func() io.Reader { return bytes.NewReader(probed()) }
	for _, sel := range []servicetraceroute.Selection{
		{PIDs: []int{1}}, {Processes: []string{"x"}}, {Cgroups: []string{"/x"}}, {Run: &servicetraceroute.Run{Descendants: 1}},
		{Match: []string{"dport == 443 && uid == 0"}},
	} {
		if all, err := records(t.Context(), servicetraceroute.Replay{Packets: file()}, sel); !errors.Is(err, errors.ErrUnsupported) || len(all) != 0 {
			t.Errorf("%+v: %v", sel, err)
		}
	}
	if _, err := records(t.Context(), servicetraceroute.Replay{}, servicetraceroute.Selection{}); err == nil {
		t.Error("no file, no error")
	}
	for _, test := range []struct {
		r    servicetraceroute.Replay
		sel  servicetraceroute.Selection
		want string
	}{
		{sel: servicetraceroute.Selection{}, want: "203.0.113.9 address"},
		{sel: servicetraceroute.Selection{Hosts: []string{"203.0.113.0/24"}}, want: "203.0.113.0/24 prefix"},
		{sel: servicetraceroute.Selection{Hosts: []string{"www.example.com"}}},
		{sel: servicetraceroute.Selection{Hosts: []string{"www.example.com"}}, r: servicetraceroute.Replay{All: true}, want: "203.0.113.9 address"},
		{sel: servicetraceroute.Selection{Hosts: []string{"203.0.113.9"}, Ports: []string{"80"}}},
		{sel: servicetraceroute.Selection{Protos: []trace.Proto{trace.UDP}}},
		{sel: servicetraceroute.Selection{Match: []string{"dport == 443"}}, want: "dport == 443 expr"},
		{sel: servicetraceroute.Selection{Match: []string{"dport == 80"}}},
		{sel: servicetraceroute.Selection{Directions: []trace.Direction{trace.Out}}, want: "203.0.113.9 address"},
		{sel: servicetraceroute.Selection{Directions: []trace.Direction{trace.In, trace.Transit}}},
		{sel: servicetraceroute.Selection{Services: []servicetraceroute.Service{{Name: "web", Ports: []string{"443"}}}}, want: "web port"},
	} {
		test.r.Packets = file()
		all, err := records(t.Context(), test.r, test.sel)
		got := ""
		if f, ok := all[0].(*trace.Flow); ok {
			got = f.Service.Name + " " + f.Service.By.String()
		}
		if err != nil || got != test.want {
			t.Errorf("%+v: %q, %v", test.sel, got, err)
		}
	}
}

// A reader who stops, and a context that ends, end the reading.
func TestReplayEnds(t *testing.T) {
	for range (servicetraceroute.Replay{Packets: bytes.NewReader(probed())}).Watch(t.Context(), servicetraceroute.Selection{}) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := servicetraceroute.Replay{Packets: bytes.NewReader(probed()), Progress: func(n uint64) {
		if n == 7 {
			cancel()
		}
	}}
	all, err := records(ctx, r, servicetraceroute.Selection{})
	if err != nil || len(all) != 3 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	if tr, ok := all[1].(*trace.Trace); !ok || tr.Stop != trace.StopCancelled || len(tr.Hops) != 1 {
		t.Errorf("%+v", all[1])
	}
}
