package names

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/miekg/dns"
)

// framed puts messages one behind another, as they go over TCP.
func framed(messages ...[]byte) []byte {
	var all []byte
	for _, m := range messages {
		all = binary.BigEndian.AppendUint16(all, uint16(len(m)))
		all = append(all, m...)
	}
	return all
}

func TestStream(t *testing.T) {
	short := reply(t, "www.example. A", "www.example. 60 IN A 192.0.2.1")
	long := make([]byte, dns.MaxMsgSize)
	sent := framed(short, long, short)
	for _, size := range []int{1, 2, 7, 1460, 65535, 1 << 20} {
		s := NewStream()
		first := uint32(1<<32 - 100)
		s.Start(first)
		var got [][]byte
		for at := 0; at < len(sent); at += size {
			s.Add(first+uint32(at), sent[at:min(at+size, len(sent))])
			for {
				m, ok := s.Next()
				if !ok {
					break
				}
				got = append(got, bytes.Clone(m))
			}
		}
		if !bytes.Equal(framed(got...), sent) || s.Stopped() || s.Held() != 0 {
			t.Errorf("segments of %d: %d messages, %d bytes held, stopped %v", size, len(got), s.Held(), s.Stopped())
		}
	}
}

func TestStreamOfSomethingElse(t *testing.T) {
	s := NewStream()
	s.Add(0, framed(make([]byte, 12), make([]byte, 11), make([]byte, 12)))
	if _, ok := s.Next(); !ok || s.Stopped() {
		t.Error("the first message is lost")
	}
	if _, ok := s.Next(); ok || !s.Stopped() || s.Held() != 0 {
		t.Error("nothing this short is DNS")
	}
	s.Add(40, []byte("more"))
	if s.Held() != 0 {
		t.Error("bytes are held for nothing")
	}
}

func TestStreamOfTooMuch(t *testing.T) {
	message := make([]byte, dns.MaxMsgSize)
	s := NewStream()
	s.Start(0)
	s.Add(0, framed(message, message)[:maxHeld+1]) // more than any packet has
	if _, ok := s.Next(); !ok || !s.Stopped() || s.Held() > maxHeld {
		t.Errorf("%d held, stopped %v", s.Held(), s.Stopped())
	}
	if _, ok := s.Next(); ok {
		t.Error("a message that is not whole")
	}
}

// The truncated answer over UDP counts as far as it goes, the whole one follows.
func TestTruncatedThenTCP(t *testing.T) {
	const question = "www.example. A"
	c := New(Limits{})
	ask := pack(t, query(question))
	c.Query(start, client, server, ask)
	c.Answer(start, client, server, reply(t, question, "www.example. 60 IN CNAME a.cdn.", func(m *dns.Msg) { m.Truncated = true }))
	if c.Len() != 0 {
		t.Error("an address from nowhere")
	}
	up, down := NewStream(), NewStream()
	up.Add(1, framed(ask))
	down.Add(1, framed(reply(t, question, "www.example. 60 IN CNAME a.cdn.\na.cdn. 60 IN A 192.0.2.1")))
	tcp := client // whichever port
	if m, ok := up.Next(); ok {
		c.Query(start, tcp, server, m)
	}
	if m, ok := down.Next(); ok {
		c.Answer(start, tcp, server, m)
	}
	if got := of(c, 0, "192.0.2.1"); got != "www.example>a.cdn" {
		t.Errorf("%q", got)
	}
}

// FuzzMessages sends messages in segments of some order; what comes out are those
// messages, in order.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{12, 40, 200}, []byte{0, 50, 50, 50, 100, 255})
	f.Add([]byte{13}, []byte{14, 20, 0, 14})
	f.Add([]byte{20, 3, 20}, []byte{0, 255})
	f.Fuzz(func(t *testing.T, lengths, cuts []byte) {
		var messages [][]byte
		for i, n := range lengths {
			messages = append(messages, bytes.Repeat([]byte{byte(i)}, int(n)))
		}
		sent := framed(messages...)
		s := NewStream()
		s.Start(0)
		for ; len(cuts) >= 2; cuts = cuts[2:] {
			from := min(int(cuts[0])*3, len(sent))
			s.Add(uint32(from), sent[from:min(from+int(cuts[1]), len(sent))])
			for {
				m, ok := s.Next()
				if !ok {
					break
				}
				if len(messages) == 0 || !bytes.Equal(m, messages[0]) {
					t.Fatalf("%x is not the next message", m)
				}
				messages = messages[1:]
			}
		}
	})
}
