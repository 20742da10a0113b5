package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"servicetraceroute"
)

// pcapFlags are the flags of the packet file.
type pcapFlags struct {
	file    string
	payload bool
}

func (f *pcapFlags) declare(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.file, "pcap", "", "write headers of traced flows, probes and replies to `FILE` (pcapng, mode 0600; -: standard output)")
	fl.BoolVar(&f.payload, "pcap-payload", false, "with what the flows carry")
	if err := cmd.MarkFlagFilename("pcap", "pcapng"); err != nil {
		panic("main: completion of --pcap: " + err.Error())
	}
}

// config checks the flags against the file of the records and lets the tracer
// write packets. packets is nil when none are wanted.
func (f *pcapFlags) config(cfg *servicetraceroute.Config, records string) (packets *packetFile, err error) {
	switch {
	case f.file == "" && f.payload:
		return nil, usage(errors.New("--pcap-payload: there is no --pcap"), "for example --pcap packets.pcapng --pcap-payload")
	case f.file == "":
		return nil, nil
	case f.file == "-" && records == "":
		return nil, usage(errors.New("--pcap -: the records go to standard output already"), "give them a file with -o FILE")
	case f.file == "-" && isTerminal(os.Stdout):
		return nil, usage(errors.New("--pcap -: standard output is a terminal"), "for example: … --pcap - -o paths.txt | wireshark -k -i -")
	case f.file != "-" && records != "" && sameFile(f.file, records):
		return nil, usage(fmt.Errorf("--pcap and -o name the same file, %s", records), "")
	}
	packets = &packetFile{name: f.file, ready: make(chan struct{})}
	cfg.Pcap, cfg.PcapPayload = packets, f.payload
	return packets, nil
}

// sameFile reports whether two names are one file's, which may not exist yet.
func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	if errX == nil && errY == nil {
		return os.SameFile(x, y)
	}
	where := func(name string) string {
		abs, err := filepath.Abs(name)
		if err != nil {
			return name
		}
		if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
			return filepath.Join(dir, filepath.Base(abs))
		}
		return abs
	}
	return where(a) == where(b)
}

// packetFile is a file that is opened after the tracer, so that none is touched
// when there is nothing to trace: until then a Write waits.
type packetFile struct {
	name  string
	ready chan struct{}
	once  sync.Once

	// Valid after ready.
	file *os.File
	own  bool // closed at the end
	err  error
}

// open opens the file. ctx ends the waiting for a named pipe's reader.
func (p *packetFile) open(ctx context.Context, stdout, stderr io.Writer) error {
	if p == nil {
		return nil
	}
	if p.name == "-" {
		file, ok := stdout.(*os.File)
		if !ok {
			return p.opened(nil, failed(errors.New("--pcap -: standard output is not a file"), ""))
		}
		// A reader that goes away ends the packets, not the tracing.
		signal.Ignore(syscall.SIGPIPE)
		if again := reopened(file); again != nil {
			file, p.own = again, true
		}
		return p.opened(file, nil)
	}
	file, err := openPrivate(ctx, p.name, stderr)
	p.own = err == nil
	return p.opened(file, err)
}

// reopened is a pipe's end with a file description of its own, whose waiting can
// be ended: making the shared one non-blocking would surprise who else has it. nil
// where that is not possible.
func reopened(file *os.File) *os.File {
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return nil
	}
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	return again
}

// opened lets writers pass.
func (p *packetFile) opened(file *os.File, err error) error {
	p.once.Do(func() {
		p.file, p.err = file, err
		close(p.ready)
	})
	return err
}

// Write implements io.Writer.
func (p *packetFile) Write(b []byte) (int, error) {
	<-p.ready
	if p.err != nil {
		return 0, p.err
	}
	return p.file.Write(b)
}

// SetWriteDeadline lets a reader that does not read delay the end only so long.
// Ordinary files have no deadlines and need none.
func (p *packetFile) SetWriteDeadline(t time.Time) error {
	select {
	case <-p.ready:
	default:
		return os.ErrNoDeadline
	}
	if p.file == nil {
		return os.ErrNoDeadline
	}
	return p.file.SetWriteDeadline(t)
}

// ofPackets begins the library's errors about the file.
const ofPackets = "servicetraceroute: Config.Pcap: "

// end closes the file after the tracer, whose Close said closing, and returns err with
// what went wrong since. p is nil when there is no file.
func (p *packetFile) end(err, closing error) error {
	for _, e := range each(closing) {
		about := p != nil && strings.HasPrefix(e.Error(), ofPackets)
		switch {
		case errors.Is(err, e), about && p.err != nil: // it was said already
		case about:
			err = errors.Join(err, p.spoilt(e))
		default:
			err = errors.Join(err, failed(inFlags(e), ""))
		}
	}
	if p != nil && p.own && p.file != nil {
		if e := p.file.Close(); e != nil {
			err = errors.Join(err, p.spoilt(e))
		}
	}
	return err
}

func (p *packetFile) spoilt(err error) error {
	return failed(fmt.Errorf("--pcap %s: %w", p.name, inFlags(err)), "the paths are complete, the packets are not")
}
