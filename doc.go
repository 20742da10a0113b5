// Package servicetraceroute traces the paths of flows that applications already
// have: it listens to them, recognises which belong to the services of interest
// and slips TTL-limited probes into those very flows, so that load balancers,
// firewalls and NATs treat a probe as they treat the application's own packets.
// The applications do not notice.
//
//	t, err := servicetraceroute.New(servicetraceroute.Config{})
//	if err != nil { … }
//	defer t.Close()
//	tr, err := t.TraceConn(ctx, conn)   // a connection of this process
//	tr, err := t.Trace(ctx, flow)       // somebody's flow, named by its addresses
//	for ev, err := range t.Watch(ctx, servicetraceroute.Selection{Hosts: []string{"*.example.com"}}) {
//		…                               // all flows of services, as they appear
//	}
//
// A Replay is a capture file in place of a Tracer. Package trace holds the values that
// come out.
//
// # Needs
//
// New opens packet sockets: Linux, and root or CAP_NET_RAW in the network namespace of the
// calling thread, whose flows are the ones that are traced. Where it may it loads eBPF programs
// too, see Config.Backend. After New a program may give up its privileges, but for what New,
// Config.Processes and Selection.Directions say they need as long as the Tracer runs. With a
// Source and a Sink of the caller's own there are no such needs, and any system will do. TCP,
// UDP and QUIC are traced, over IPv4 and IPv6; a UDP flow not as far as its peer, see
// Params.UDPProbe.
//
// # How long, how many
//
// A trace takes one to a few seconds, most of it for the destination: probes that
// may reach it are at least 600 ms apart. Make one Tracer for the process and share
// it: rate limits hold per Tracer, and routers see the sum. Traces run beside each
// other, of different flows; of one flow one at a time.
//
// # Values, errors, time
//
// What is handed out is never written again by this package; what is shared, as by
// Last, must not be changed by the caller. Every method may be called from any
// goroutine. A context that ends is no error: what was found until then is
// returned. Errors name the field that is wrong, and match, with errors.Is,
// os.ErrPermission, errors.ErrUnsupported, net.ErrClosed (after Close) and the errors
// of this package. What happens to flows is not an error: a Trace says by Stop and
// Reason why it ended. Durations are time.Duration, addresses net/netip.
package servicetraceroute
