package packetfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
)

var _ capture.Source = (*File)(nil)

// many is a file of n packets.
func many(n int) []byte {
	f := section(binary.LittleEndian)
	f.iface(linkRaw, f.option(ifName, []byte("eth0")))
	for i := range n {
		f.enhanced(0, uint64(i), ip4, len(ip4))
	}
	return f.b
}

// A file is read in batches, to its end; a batch stays as it is until the next.
func TestBatches(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f.pcapng")
	if err := os.WriteFile(name, many(1000), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		batch, err := f.ReadBatch()
		if err == io.EOF {
			break
		}
		if err != nil || len(batch) == 0 || len(batch) > maxBatch {
			t.Fatalf("%d packets, %v", len(batch), err)
		}
		for _, p := range batch {
			if !bytes.Equal(p.Data, ip4) || p.Time.UnixMicro() != int64(n) || f.InterfaceName(p.Interface) != "eth0" {
				t.Fatalf("%d: %+v", n, p)
			}
			n++
		}
	}
	if n != 1000 || f.Stats() != (capture.Stats{Seen: 1000}) {
		t.Errorf("%d packets, %+v", n, f.Stats())
	}
	for range 2 {
		if _, err := f.ReadBatch(); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
	}
	if f.InterfaceName(0) != "" || f.InterfaceName(2) != "" {
		t.Error("interfaces that are not there have names")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.ReadBatch(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// Packets before a broken place come first, then the error, again and again.
func TestBatchBeforeError(t *testing.T) {
	b := many(10)
	f := New(bytes.NewReader(b[:len(b)-5]), Options{})
	batch, err := f.ReadBatch()
	if len(batch) != 9 || err != nil {
		t.Fatalf("%d packets, %v", len(batch), err)
	}
	for range 2 {
		var broken *Error
		if _, err := f.ReadBatch(); !errors.As(err, &broken) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v", err)
		}
	}
}

// What could not be read counts as lost, what is no IP does not.
func TestStats(t *testing.T) {
	f := pcap(binary.LittleEndian, false, linkEthernet)
	f.record(0, 0, join(macs, "\x08\x00", ip4), 60).record(0, 0, join(macs, "\x08\x06"), 60).record(0, 0, []byte(macs), 60)
	s := New(bytes.NewReader(f.b), Options{})
	if _, err := s.ReadBatch(); err != nil {
		t.Fatal(err)
	}
	if s.Stats() != (capture.Stats{Seen: 2, Dropped: 1}) || s.Counts() != (Counts{Packets: 1, NotIP: 1, Cut: 1}) {
		t.Errorf("%+v %+v", s.Stats(), s.Counts())
	}
}

// Only where the file does not tell the direction, the caller is asked.
func TestDirectionIsAsked(t *testing.T) {
	f := section(binary.LittleEndian).iface(linkRaw)
	f.enhanced(0, 1, ip4, len(ip4), f.option(epbFlags, f.words(1))).enhanced(0, 1, ip6, len(ip6))
	asked := 0
	s := New(bytes.NewReader(f.b), Options{Direction: func(p *capture.Packet) capture.Direction {
		asked++
		if !bytes.Equal(p.Data, ip6) {
			t.Errorf("asked about %+v", p)
		}
		return capture.Outgoing
	}})
	batch, err := s.ReadBatch()
	if err != nil || asked != 1 || batch[0].Direction != capture.Incoming || batch[1].Direction != capture.Outgoing {
		t.Errorf("%v, asked %d times: %+v", err, asked, batch)
	}
}

// A deadline that has passed ends a wait for a pipe, in the middle of a packet too,
// and loses nothing.
func TestDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f := New(r, Options{})
	b := many(2)
	if _, err := w.Write(b[:len(b)-10]); err != nil {
		t.Fatal(err)
	}
	if batch, err := f.ReadBatch(); len(batch) == 0 || err != nil {
		t.Fatalf("%d packets, %v", len(batch), err)
	}
	past := time.Unix(1, 0)
	if err := f.SetReadDeadline(past); err != nil {
		t.Fatalf("pipes have no deadlines here: %v", err)
	}
	if _, err := f.ReadBatch(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		batch, err := f.ReadBatch() // waits for the rest
		if len(batch) == 1 {
			batch, err = f.ReadBatch()
			if len(batch) != 0 {
				err = errors.New("a third packet")
			}
		}
		done <- err
	}()
	if err := f.SetReadDeadline(past); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b[len(b)-10:]); err != nil {
		t.Fatal(err)
	}
	batch, err := f.ReadBatch()
	if err != nil || len(batch) != 1 || !bytes.Equal(batch[0].Data, ip4) {
		t.Fatalf("%d packets, %v", len(batch), err)
	}
}

// later is a file without an end in which nothing is a packet; it closes its File.
type later struct {
	f    *File
	b    []byte
	left int
}

func (l *later) Read(b []byte) (int, error) {
	if l.left--; l.left == 0 {
		_ = l.f.SetReadDeadline(time.Unix(1, 0))
	}
	return copy(b, l.b), nil
}

// A deadline ends the reading of what is no packet, too.
func TestDeadlineAmongOthers(t *testing.T) {
	head, junk := section(binary.LittleEndian), &file{order: binary.LittleEndian}
	for range 1000 {
		junk.block(0x0bad)
	}
	l := &later{b: junk.b, left: 5}
	l.f = New(io.MultiReader(bytes.NewReader(head.b), l), Options{})
	if batch, err := l.f.ReadBatch(); len(batch) > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d packets, %v", len(batch), err)
	}
}

// Close wakes who waits.
func TestCloseWakes(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f := New(r, Options{})
	done := make(chan error)
	go func() {
		_, err := f.ReadBatch()
		done <- err
	}()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// FuzzReader: any bytes come to an end, with no packet longer than what there was.
func FuzzReader(f *testing.F) {
	if b, err := os.ReadFile("../evidence/testdata/golden.pcapng"); err == nil {
		f.Add(b)
	}
	for _, order := range orders {
		f.Add(pcap(order, true, linkEthernet).record(1, 2, join(macs, "\x81\x00\x00\x07\x08\x00", ip4), 60).b)
		f.Add(pcap(order, false, linkSLL2).record(1, 2, join("\x08\x00\x00\x00\x00\x00\x00\x02\x00\x01\x04\x06\x02\x00\x00\x00\x00\x01\x00\x00", ip4), 60).b)
		ng := section(order)
		ng.iface(linkRaw, ng.option(ifName, []byte("eth0")), ng.option(ifTSResol, []byte{0x9f}), ng.option(ifTSOffset, ng.words(1, 0)))
		ng.enhanced(0, 1, ip4, len(ip4), ng.option(epbFlags, ng.words(2))).block(simplePacket, ng.words(60), ip6)
		ng.block(oldPacket, ng.words(0, 0, 0, 40, 40), ip4).block(statistics, ng.words(0, 0, 0)).section()
		f.Add(ng.iface(linkNull).enhanced(0, 1, join("\x02\x00\x00\x00", ip4), 44).b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(bytes.NewReader(b), Options{})
		total, packets := 0, uint64(0)
		for {
			batch, err := s.ReadBatch()
			if err != nil {
				var broken *Error
				if err != io.EOF && (!errors.As(err, &broken) || broken.Offset < 0 || broken.Offset > int64(len(b))) {
					t.Fatalf("%v", err)
				}
				break
			}
			for _, p := range batch {
				total += len(p.Data)
				if len(p.Data) == 0 || p.Len < len(p.Data) || p.Interface < 1 || p.Interface > maxInterfaces || p.Time.Year() > 9999 || p.Time.Unix() < 0 {
					t.Fatalf("%+v", p)
				}
			}
			packets += uint64(len(batch))
		}
		if total > len(b) || s.Counts().Packets != packets {
			t.Fatalf("%d bytes of %d, %d packets, %+v", total, len(b), packets, s.Counts())
		}
	})
}

func BenchmarkReadBatch(b *testing.B) {
	file := many(100_000)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		s := New(bytes.NewReader(file), Options{})
		for {
			if _, err := s.ReadBatch(); err != nil {
				break
			}
		}
	}
	b.ReportMetric(float64(b.N)*100_000/b.Elapsed().Seconds(), "packets/s")
}
