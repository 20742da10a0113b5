package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"
)

// answer is a message of the kernel's.
func answer(kind uint16, seq uint32, body ...byte) []byte {
	var m messages
	m.seq = seq - 1
	m.begin(kind, 0, 0, 0)
	m.b = append(m.b[:nlmsgHeader], body...)
	m.end()
	return m.b
}

func errno(n syscall.Errno) []byte {
	return append(binary.NativeEndian.AppendUint32(nil, uint32(-int32(n))), make([]byte, nlmsgHeader)...)
}

func TestOutcome(t *testing.T) {
	join := func(all ...[]byte) []byte { return bytes.Join(all, nil) }
	for name, test := range map[string]struct {
		b    []byte
		want error
		ack  bool
	}{
		"nothing":                   {nil, nil, false},
		"acknowledged":              {answer(msgError, 7, errno(0)...), nil, true},
		"another is":                {answer(msgError, 6, errno(0)...), nil, false},
		"refused, then the last is": {join(answer(msgError, 5, errno(syscall.ENFILE)...), answer(msgError, 7, errno(0)...)), syscall.ENFILE, true},
		"the last is refused":       {answer(msgError, 7, errno(syscall.EPERM)...), syscall.EPERM, false},
		"the first error counts":    {join(answer(msgError, 5, errno(syscall.ENFILE)...), answer(msgError, 7, errno(syscall.EPERM)...)), syscall.ENFILE, false},
		"something else":            {answer(99, 7, 1, 2, 3, 4), nil, false},
		"cut short":                 {answer(msgError, 7, errno(0)...)[:20], errShort, false},
		"no number":                 {answer(msgError, 7, 0, 0), errShort, false},
		"no header":                 {[]byte{16, 0, 0}, errShort, false},
	} {
		var o outcome
		o.read(test.b, 7)
		if !errors.Is(o.err, test.want) || o.ack != test.ack {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

// counted is the kernel's word on a counter.
func counted(seq uint32, n uint64) []byte {
	m := messages{seq: seq - 1}
	m.of(18, 0) // NFT_MSG_NEWOBJ
	m.text(2, "dropped")
	m.nest(objData)
	m.long(1, 1234) // bytes
	m.long(counterPackets, n)
	m.unnest()
	m.end()
	return m.b
}

func TestPackets(t *testing.T) {
	if n, err := packets(counted(3, 1<<40), 3); n != 1<<40 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for name, test := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":         {nil, errShort},
		"of another time": {counted(2, 9), errShort},
		"cut short":       {counted(3, 9)[:40], errShort},
		"no counter":      {answer(18, 3, 1, 0, 0, 0), errShort},
		"refused":         {answer(msgError, 3, errno(syscall.EPERM)...), syscall.EPERM},
	} {
		if n, err := packets(test.b, 3); n != 0 || !errors.Is(err, test.want) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

// FuzzAnswers reads any bytes as the kernel's.
func FuzzAnswers(f *testing.F) {
	f.Add(answer(msgError, 7, errno(syscall.ENFILE)...))
	f.Add(counted(7, 9))
	f.Fuzz(func(t *testing.T, b []byte) {
		var o outcome
		o.read(b, 7)
		if len(b) > 0 && len(b) < nlmsgHeader && o.err == nil {
			t.Error("no message, and no error")
		}
		if n, err := packets(b, 7); err != nil && n != 0 {
			t.Errorf("%d and %v", n, err)
		}
	})
}
