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
	"servicetraceroute/internal/domain"
	"servicetraceroute/internal/match"
	"servicetraceroute/internal/privilege"
)

const unsupportedHint = "a Linux kernel with packet sockets is needed, not an emulation of one (gVisor, WSL 1); " +
	"the library works everywhere with a packet source of your own"

// openFailed says what helps when the tracer could not be opened.
func openFailed(err error) error {
	switch {
	case errors.Is(err, servicetraceroute.ErrNoInterface):
		return failed(inFlags(err), "interfaces here: "+strings.Join(interfaceNames(), ", "))
	case errors.Is(err, errors.ErrUnsupported):
		return failed(err, unsupportedHint)
	case errors.Is(err, os.ErrPermission):
		needed := "cap_net_raw"
		if errors.Is(err, servicetraceroute.ErrEBPF) {
			needed += ",cap_net_admin,cap_bpf,cap_perfmon"
		}
		return failed(err, privilege.Hint(err, needed))
	}
	if !aboutFlags(err) {
		return failed(inFlags(err), "")
	}
	return usage(inFlags(err), "see service-traceroute trace --help-all")
}

// aboutFlags reports whether the library refused what the flags say.
func aboutFlags(err error) bool {
	text := err.Error()
	for _, field := range []string{"Selection", "Config", "Replay.Local"} {
		if strings.HasPrefix(text, "servicetraceroute: "+field) && !strings.HasPrefix(text, ofPackets) {
			return true
		}
	}
	return false
}

// watchFailed says what helps when a selection was refused.
func watchFailed(err error) error {
	var pattern *domain.Error
	var expression *match.Error
	refused := aboutFlags(err)
	err = inFlags(err)
	switch {
	case errors.As(err, &expression) && expression.Hint != "":
		return usage(err, expression.Hint)
	case errors.As(err, &pattern) && pattern.Hint != "":
		return usage(err, pattern.Hint)
	case !refused:
		return failed(err, "")
	}
	return usage(err, "see service-traceroute trace -h")
}

// inFlags puts the command line's words for the library's.
func inFlags(err error) error {
	text := err.Error()
	for library, flag := range map[string]string{
		"servicetraceroute: Selection.Hosts: ":      "--host: ",
		"servicetraceroute: Selection.Match: ":      "--match: ",
		"servicetraceroute: Selection.Ports: ":      "--port: ",
		"servicetraceroute: Selection.Processes: ":  "--process: ",
		"servicetraceroute: Selection.PIDs: ":       "--pid: ",
		"servicetraceroute: Selection.Cgroups: ":    "--cgroup: ",
		"servicetraceroute: Selection.Directions: ": "--direction: ",
		"servicetraceroute: Selection: ":            "",
		"servicetraceroute: Config.Interfaces: ":    "--interface: ",
		"servicetraceroute: Config.Pcap: ":          "",
		"servicetraceroute: Config.PcapPayload: ":   "--pcap-payload: ",
		"servicetraceroute: Replay.Packets: ":       "",
		"packetfile: ":                              "",
		"capture: interface ":                       "--interface: ",
	} {
		text = strings.Replace(text, library, flag, 1)
	}
	for field, flag := range map[string]string{
		"FirstTTL": "--first-ttl", "MaxTTL": "--max-ttl", "Probes": "--probes", "MaxSilent": "--max-silent",
		"Timeout": "--timeout", "ProbeInterval": "--probe-interval", "TTLInterval": "--ttl-interval",
		"FlowTimeout": "--flow-timeout",
	} {
		text = strings.Replace(text, "servicetraceroute: Config.Defaults: Params."+field+": ", flag+": ", 1)
		text = strings.Replace(text, "servicetraceroute: Selection.Params."+field+": ", flag+": ", 1)
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
	what     string
	terminal bool
	mu       sync.Mutex
	begun    bool // what it says is done, not only meant to be
	shown    bool
	quit     chan struct{}
	done     chan struct{}
}

func startProgress(w io.Writer, what string, t watcher) *progress {
	return showProgress(w, what, func() string {
		s := t.Stats()
		return fmt.Sprintf("%d flows matched, %d of %d traces done, %d probes sent",
			s.Flows.Matched, s.Traces.Done, s.Traces.Started, s.Probes.Sent)
	})
}

// showProgress is startProgress with another line, which is asked for once a second.
// Without what nothing has to begin first.
func showProgress(w io.Writer, what string, line func() string) *progress {
	p := &progress{w: w, what: what, begun: what == "", terminal: isTerminal(w), quit: make(chan struct{}), done: make(chan struct{})}
	go p.loop(line)
	return p
}

// begin says what is being done, once it is: whoever reads it may start.
func (p *progress) begin() {
	_ = p.aside(func() error {
		p.begun = true
		fmt.Fprintf(p.w, "%s; Ctrl-C stops\n", p.what)
		return nil
	})
}

func (p *progress) loop(line func() string) {
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
			text := line()
			p.mu.Lock()
			if !p.begun {
				fmt.Fprintf(p.w, "\r\x1b[K%v: resolving names", time.Since(start).Round(time.Second))
				p.shown = true
				p.mu.Unlock()
				continue
			}
			fmt.Fprintf(p.w, "\r\x1b[K%v: %s", time.Since(start).Round(time.Second), text)
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
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // the one character device that output is often sent to
	return err != nil || !os.SameFile(info, null)
}
