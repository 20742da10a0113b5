package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/netns"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/trace"
)

// watcher is a Tracer, or many.
type watcher interface {
	Watch(context.Context, servicetraceroute.Selection) iter.Seq2[trace.Event, error]
	SetSelection(context.Context, servicetraceroute.Selection) error
	Stats() trace.Stats
	Close() error
}

// netnsFlags say in which network namespaces flows are traced.
type netnsFlags struct{ netns string }

const everyNetns = "all"

// declare defines the flag and its completion.
func (f *netnsFlags) declare(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.netns, "netns", "",
		"trace in another network namespace: a `NAME` of ip netns, a path such as /proc/PID/ns/net, or all")
	err := cmd.RegisterFlagCompletionFunc("netns", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return append(netns.Names(), everyNetns), cobra.ShellCompDirectiveDefault
	})
	if err != nil {
		panic("main: completion of --netns: " + err.Error())
	}
}

// where puts the flag into cfg.
func (f *netnsFlags) where(cfg *servicetraceroute.Config) {
	if f.netns != everyNetns {
		cfg.NetNS = f.netns
	}
}

// namespaces refuses what does not go with many of them.
func (f *netnsFlags) namespaces(all *traceFlags) error {
	switch {
	case f.netns != everyNetns:
	case all.pcap.file != "":
		return usage(errors.New("--pcap: one file cannot hold the packets of --netns all"), "name one namespace: --netns NAME --pcap FILE")
	case all.idle > 0:
		return usage(errors.New("--idle: --netns all does not end by itself"), "use --duration, or name one namespace")
	}
	return nil
}

// needs are the capabilities without which new namespaces cannot be found, entered
// and listened to.
func (f *netnsFlags) needs() []privilege.Capability {
	if f.netns != everyNetns {
		return nil
	}
	return []privilege.Capability{privilege.SysAdmin, privilege.NetRaw, privilege.SysPtrace, privilege.DACReadSearch}
}

// tracer opens a tracer where the flag says.
func (f *netnsFlags) tracer(cfg servicetraceroute.Config, stderr io.Writer) (watcher, error) {
	if f.netns == everyNetns {
		fleet, err := openFleet(cfg, stderr)
		if err != nil {
			return nil, f.refused(err)
		}
		return fleet, nil
	}
	oneProcessor()
	t, err := servicetraceroute.New(cfg)
	if err != nil {
		return nil, f.refused(err)
	}
	return t, nil
}

// refused says what helps when no tracer could be opened there.
func (f *netnsFlags) refused(err error) error {
	var access *netns.AccessError
	switch {
	case f.netns == "":
		return openFailed(err)
	case errors.Is(err, servicetraceroute.ErrNoNetNS):
		names := netns.Names()
		if len(names) == 0 {
			return failed(fmt.Errorf("--netns: %w", err), "ip netns knows none here; a container's is /proc/PID/ns/net with the PID of one of its processes")
		}
		return failed(fmt.Errorf("--netns: %w", err), "names here: "+strings.Join(names, ", ")+"; or a path such as /proc/PID/ns/net")
	case errors.As(err, &access) && errors.Is(err, os.ErrPermission):
		return failed(fmt.Errorf("--netns: %w", err), "other network namespaces take CAP_SYS_ADMIN beside CAP_NET_RAW: run as root")
	case errors.Is(err, servicetraceroute.ErrNoInterface) && f.netns != everyNetns:
		var names []string
		_ = netns.Do(f.netns, func() error { names = interfaceNames(); return nil }) // without names the hint is shorter
		return failed(inFlags(err), "interfaces there: "+strings.Join(names, ", "))
	case errors.Is(err, servicetraceroute.ErrNoInterface), errors.Is(err, os.ErrPermission), errors.Is(err, errors.ErrUnsupported):
		return openFailed(err)
	}
	return failed(fmt.Errorf("--netns: %w", err), "a name of ip netns, a path such as /proc/PID/ns/net, or all")
}

// errNoAdmin is what the kernel would say.
var errNoAdmin = fmt.Errorf("CAP_SYS_ADMIN is missing: %w", os.ErrPermission)
