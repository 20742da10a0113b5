package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/privilege"
)

// openFailed says what helps when the tracer could not be opened.
func openFailed(err error) error {
	switch {
	case errors.Is(err, capture.ErrNoInterface):
		return failed(err, "interfaces here: "+fmt.Sprint(interfaceNames()))
	case errors.Is(err, errors.ErrUnsupported):
		return failed(err, "capture needs Linux; the library works everywhere with a packet source of your own")
	case errors.Is(err, os.ErrPermission):
		return failed(err, privilege.Hint(err))
	}
	return usage(inFlags(err), "see service-traceroute trace --help-all")
}

// watchFailed says what helps when a selection was refused.
func watchFailed(err error) error {
	var dns *net.DNSError
	err = inFlags(err)
	switch {
	case errors.As(err, &dns):
		return failed(err, "give the address itself, or check the name")
	case errors.Is(err, servicetraceroute.ErrNameFromWire):
		return usage(err, "give an address, a prefix or a plain name")
	case errors.Is(err, net.ErrClosed):
		return failed(err, "")
	}
	return usage(err, "see service-traceroute trace -h")
}

// inFlags puts the command line's words for the library's.
func inFlags(err error) error {
	text := err.Error()
	for library, flag := range map[string]string{
		"servicetraceroute: Selection.Hosts: ":   "--host: ",
		"servicetraceroute: Selection.Ports: ":   "--port: ",
		"servicetraceroute: Selection: ":         "",
		"servicetraceroute: Config.Interfaces: ": "--interface: ",
	} {
		text = strings.Replace(text, library, flag, 1)
	}
	for field, flag := range map[string]string{
		"FirstTTL": "--first-ttl", "MaxTTL": "--max-ttl", "Probes": "--probes", "MaxSilent": "--max-silent",
		"Timeout": "--timeout", "ProbeInterval": "--probe-interval", "TTLInterval": "--ttl-interval",
		"FlowTimeout": "--flow-timeout",
	} {
		text = strings.Replace(text, "servicetraceroute: Params."+field+": ", flag+": ", 1)
	}
	return &worded{text, err}
}

// worded is an error in other words.
type worded struct {
	text string
	err  error
}

// Error implements error.
func (w *worded) Error() string { return w.text }

// Unwrap implements the errors package's convention.
func (w *worded) Unwrap() error { return w.err }

func interfaceNames() []string {
	list, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
}

// progress keeps a line on a terminal that says that work goes on; elsewhere it
// says so once.
type progress struct {
	w        io.Writer
	terminal bool
	mu       sync.Mutex
	shown    bool
	quit     chan struct{}
	done     chan struct{}
}

func startProgress(w io.Writer, what string, t *servicetraceroute.Tracer) *progress {
	p := &progress{w: w, terminal: isTerminal(w), quit: make(chan struct{}), done: make(chan struct{})}
	fmt.Fprintf(w, "%s; Ctrl-C stops\n", what)
	go p.loop(t)
	return p
}

func (p *progress) loop(t *servicetraceroute.Tracer) {
	defer close(p.done)
	if !p.terminal {
		<-p.quit
		return
	}
	start := time.Now()
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for {
		select {
		case <-p.quit:
			p.clear()
			return
		case <-every.C:
			s := t.Stats()
			p.mu.Lock()
			fmt.Fprintf(p.w, "\r\x1b[K%v: %d flows matched, %d of %d traces done, %d probes sent",
				time.Since(start).Round(time.Second), s.Flows.Matched, s.Traces.Done, s.Traces.Started, s.Probes.Sent)
			p.shown = true
			p.mu.Unlock()
		}
	}
}

// aside runs print with the line removed: standard output may be the same
// terminal.
func (p *progress) aside(print func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hide()
	return print()
}

// clear removes the line before something else is printed.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hide()
}

// hide removes the line. The caller holds mu.
func (p *progress) hide() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

func (p *progress) stop() {
	close(p.quit)
	<-p.done
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
