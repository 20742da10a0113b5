package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"testing"
)

// Each error has a line of its own, once; the first one's status counts.
func TestConclude(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	whole := fmt.Errorf("two: %w and %w", first, second)
	for _, test := range []struct {
		err    error
		status int
		want   string
	}{
		{nil, 0, ""},
		{first, 2, "error: first\nhint: see service-traceroute -h\n"},
		{failed(first, "do"), 1, "error: first\nhint: do\n"},
		{errors.Join(failed(first, ""), usage(second, "do")), 1, "error: first\nerror: second\nhint: do\n"},
		{errors.Join(exitStatus(7), failed(second, "")), 7, "error: second\n"},
		{errors.Join(exitStatus(0), failed(second, "")), 0, "error: second\n"},
		{failed(errors.Join(first, errors.Join(second)), "do"), 1, "error: first\nhint: do\nerror: second\n"},
		{errors.Join(failed(first, ""), failed(errors.Join(first, second), "")), 1, "error: first\nerror: second\n"},
		{failed(whole, ""), 1, "error: two: first and second\n"},
		{failed(fmt.Errorf("in: %w", errors.Join(first, second)), ""), 1, "error: in: first; second\n"},
		{errors.Join(errNoMatch, failed(second, "")), 3, fmt.Sprintf("error: %v\nhint: %s\nerror: second\n", errNoMatch.err, errNoMatch.hint)},
		{failed(errors.New("a\x1b[2Jb\u202e"), "c\x07"), 1, `error: a\x1b[2Jb\u202e` + "\n" + `hint: c\a` + "\n"},
	} {
		var out bytes.Buffer
		if status := conclude(test.err, &out); status != test.status || out.String() != test.want {
			t.Errorf("%v: status %d, want %d; %q, want %q", test.err, status, test.status, out.String(), test.want)
		}
	}
}

// What Close says besides what was said already is not lost.
func TestPacketFileEnd(t *testing.T) {
	said, late := errors.New("read: network is down"), errors.New("close: no")
	spoilt := errors.New(ofPackets + "write packets: no space left")
	file := &packetFile{name: "f"}
	for _, test := range []struct {
		p            *packetFile
		err, closing error
		want         string
	}{
		{nil, nil, nil, ""},
		{nil, watchFailed(said), errors.Join(said), "error: read: network is down\n"},
		{nil, nil, errors.Join(said, late), "error: read: network is down\nerror: close: no\n"},
		{file, failed(late, ""), errors.Join(said, spoilt), "error: close: no\nerror: read: network is down\n" +
			"error: --pcap f: write packets: no space left\nhint: the paths are complete, the packets are not\n"},
		{&packetFile{err: fs.ErrNotExist}, fs.ErrNotExist, spoilt, "error: file does not exist\nhint: see service-traceroute -h\n"},
	} {
		var out bytes.Buffer
		conclude(test.p.end(test.err, test.closing), &out)
		if out.String() != test.want {
			t.Errorf("%v, %v: %q, want %q", test.err, test.closing, out.String(), test.want)
		}
	}
}

// A server's words do not reach the terminal as they are.
func TestServerWords(t *testing.T) {
	for answer, want := range map[string]string{
		"HTTP/1.1 200 \x1b]0;owned\x07\u202eOK\r\nContent-Length: 0\r\n\r\n": `answer: HTTP/1.1 200 \x1b]0;owned\a\u202eOK` + "\n",
		"\x1b[2J\r\n\r\n": `\x1b[2J`,
	} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Read(make([]byte, 4096))
			_, _ = io.WriteString(theirs, answer)
			_ = theirs.Close()
		}()
		c := &dialed{conn: ours, to: target{"192.0.2.1", "80"}, plain: true, got: make(chan struct{})}
		var out bytes.Buffer
		c.get(t.Context(), &out)
		if text := out.String(); strings.ContainsAny(text, "\x1b\x07\u202e") || !strings.Contains(text, want) {
			t.Errorf("%q: %q, want %q", answer, text, want)
		}
	}
}
