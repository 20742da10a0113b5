package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/privilege"
)

// ownerFlags say whose flows are traced.
type ownerFlags struct {
	processes, cgroups []string
	pids               []int
}

func (f *ownerFlags) declare(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.processes, "process", nil, "only flows of processes of this `NAME`; alone, all of them (repeat)")
	fl.IntSliceVar(&f.pids, "pid", nil, "only flows of process `N`; alone, all of them (repeat)")
	fl.StringArrayVar(&f.cgroups, "cgroup", nil, "only flows of this control group `PATH` and those below; alone, all of them (repeat)")
	completeWith(cmd, "process", nil)
	completeWith(cmd, "pid", nil)
}

// any reports whether a flow's process decides.
func (f *ownerFlags) any() bool { return len(f.processes)+len(f.pids)+len(f.cgroups) > 0 }

// apply refuses numbers that are no process's: a watch for them would be in vain.
func (f *ownerFlags) apply(sel *servicetraceroute.Selection) error {
	sel.Processes, sel.PIDs, sel.Cgroups = f.processes, f.pids, f.cgroups
	if _, err := os.Stat("/proc/self"); err != nil {
		return nil
	}
	for _, pid := range f.pids {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); pid > 0 && errors.Is(err, os.ErrNotExist) {
			return usage(fmt.Errorf("--pid: there is no process %d", pid), "pgrep NAME lists processes by name, or use --process NAME")
		}
	}
	return nil
}

// seeing are the capabilities with which other users' processes are seen. Where a
// selection depends on that they are kept; for records alone only by a plain root, who
// stays root and could do without them what they permit. Under sudo the flows of who
// called it are named, which takes none.
func seeing(depends bool) []privilege.Capability {
	all := []privilege.Capability{privilege.SysPtrace, privilege.DACReadSearch}
	if depends {
		return append(translations(), all...)
	}
	if _, _, under := privilege.Invoker(); under || os.Geteuid() != 0 {
		return nil
	}
	return all
}

// translations is the capability with which the kernel tells how it translates this
// host's own flows; none where it cannot translate any.
func translations() []privilege.Capability {
	if !owner.Tracking() {
		return nil
	}
	return []privilege.Capability{privilege.NetAdmin}
}

// dropping is the capability with which ICMP errors about probes are dropped where an
// application might hear of them, as every UDP socket may over IPv6, or the client of a
// forwarded flow, and with which the kernel tells whose flow that is; none where no such
// flow is probed.
func (f *traceFlags) dropping() []privilege.Capability {
	udp := len(f.protos) == 0 || slices.Contains(f.protos, "udp")
	own := func(p ownPolicy) bool { return p.policy.Params.UDPProbe != servicetraceroute.UDPOff }
	udp = udp && (f.udpProbe != "off" || slices.ContainsFunc(f.own, own))
	if !f.forwarded() && (f.noProbe || !udp) {
		return nil
	}
	return []privilege.Capability{privilege.NetAdmin}
}

// what names what is watched, as the user wrote it.
func (f *traceFlags) what() string {
	var all []string
	for _, s := range f.services {
		all = append(all, "service "+output.Escape(s))
	}
	for _, h := range f.hosts {
		all = append(all, output.Escape(h))
	}
	for _, m := range f.match {
		all = append(all, output.Escape(m))
	}
	for _, p := range f.processes {
		all = append(all, "process "+strconv.Quote(p))
	}
	for _, p := range f.pids {
		all = append(all, "process "+strconv.Itoa(p))
	}
	for _, c := range f.cgroups {
		all = append(all, "control group "+strconv.Quote(c))
	}
	return strings.Join(all, ", ")
}
