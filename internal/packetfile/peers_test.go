package packetfile

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"servicetraceroute/internal/capture"
)

// gopacketInfo is about a packet captured at the nth interface.
func gopacketInfo(n int, at time.Time, data []byte) gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(data), Length: len(data) + 7, InterfaceIndex: n}
}

// What gopacket writes as pcap reads back.
func TestReadsPcapgo(t *testing.T) {
	at := time.Unix(1_700_000_000, 123_456_789)
	for _, nano := range []bool{false, true} {
		var b bytes.Buffer
		w, unit := pcapgo.NewWriter(&b), time.Microsecond
		if nano {
			w, unit = pcapgo.NewWriterNanos(&b), time.Nanosecond
		}
		if err := w.WriteFileHeader(262144, layers.LinkTypeEthernet); err != nil {
			t.Fatal(err)
		}
		for n := range 100 {
			data := join(macs, "\x08\x00", ip4)
			if err := w.WritePacket(gopacketInfo(0, at.Add(time.Duration(n)*time.Second), data), data); err != nil {
				t.Fatal(err)
			}
		}
		got, _ := whole(t, b.Bytes())
		if len(got) != 100 {
			t.Fatalf("%d packets", len(got))
		}
		for n, p := range got {
			if want := at.Add(time.Duration(n) * time.Second).Truncate(unit); !p.Time.Equal(want) || !bytes.Equal(p.Data, ip4) || p.Len != len(ip4)+7 {
				t.Errorf("%d: %+v, want %v", n, p, want)
			}
		}
	}
}

// What gopacket writes as pcapng reads back: interfaces with names, resolutions,
// link types and offsets, statistics, decryption secrets and names in between.
func TestReadsPcapgoNG(t *testing.T) {
	at := time.Unix(1_700_000_000, 123_456_789)
	taps := []pcapgo.NgInterface{
		{Name: "eth0", LinkType: layers.LinkTypeEthernet, TimestampResolution: 9},
		{Name: "tun0", LinkType: layers.LinkTypeRaw, TimestampResolution: 6, Comment: "c", Filter: "tcp", OS: "Linux", SnapLength: 128},
		{Name: "any", LinkType: layers.LinkTypeLinuxSLL, TimestampResolution: 3, TimestampOffset: 100},
	}
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriterInterface(&b, taps[0], pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Hardware: "h", Comment: "c"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tap := range taps[1:] {
		if _, err := w.AddInterface(tap); err != nil {
			t.Fatal(err)
		}
	}
	frames := [][]byte{join(macs, "\x86\xdd", ip6), ip4, join("\x00\x04\x00\x01\x00\x06\x02\x00\x00\x00\x00\x01\x00\x00\x08\x00", ip4)}
	for n := range 300 {
		options := pcapgo.NgPacketOptions{Comments: []string{"one", "another"}}
		if n%2 == 0 {
			options.Flags = &pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionInbound}
		}
		data := frames[n%3]
		if err := w.WritePacketWithOptions(gopacketInfo(n%3, at, data), data, options); err != nil {
			t.Fatal(err)
		}
		if n == 150 {
			if err := w.WriteInterfaceStats(1, pcapgo.NgInterfaceStatistics{LastUpdate: at, PacketsReceived: 9, PacketsDropped: 5}); err != nil {
				t.Fatal(err)
			}
			if err := w.WriteDecryptionSecretsBlock(0x544c534b, []byte("CLIENT_RANDOM 0 0\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	peer, err := pcapgo.NewNgReader(bytes.NewReader(b.Bytes()), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	got, r := whole(t, b.Bytes())
	if c := r.Counts(); len(got) != 300 || c.Lost != 5 {
		t.Fatalf("%d packets, %+v", len(got), c)
	}
	for n, p := range got {
		_, info, err := peer.ReadPacketData()
		if err != nil {
			t.Fatal(err)
		}
		i, _ := r.Interface(p.Interface)
		if !p.Time.Equal(info.Timestamp) || i.Name != taps[n%3].Name || i.LinkType != uint32(taps[n%3].LinkType) {
			t.Errorf("%d: %+v at %s, gopacket says %v", n, p, i.Name, info.Timestamp)
		}
		want := capture.Direction(0)
		if n%2 == 0 {
			want = capture.Incoming
		}
		if n%3 == 2 {
			want = capture.Outgoing // the cooked header's word is the last
		}
		if p.Direction != want {
			t.Errorf("%d: direction %v, want %v", n, p.Direction, want)
		}
	}
}

// The files that --pcap writes read back.
func TestReadsOurOwn(t *testing.T) {
	b, err := os.ReadFile("../evidence/testdata/golden.pcapng")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	// Its packets are words, not packets: count them all the same.
	r := NewReader(bytes.NewReader(b))
	var handed int
	for {
		if _, err := r.Next(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		handed++
	}
	n := 0
	for ; ; n++ {
		if _, _, err := peer.ReadPacketData(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if c := r.Counts(); n == 0 || handed+int(c.NotIP+c.Cut) != n || !strings.HasPrefix(r.interfaces[0].Name, "eth") {
		t.Errorf("gopacket reads %d, we %d, %+v", n, handed, c)
	}
}
