// Package servicetraceroute traces the paths of flows that applications already
// have: it listens to them, recognises which belong to the services of interest
// and slips TTL-limited probes into those very flows, so that load balancers,
// firewalls and NATs treat a probe as they treat the application's own packets.
//
//	t, err := servicetraceroute.New(servicetraceroute.Config{})
//	if err != nil { … }
//	defer t.Close()
//	for ev, err := range t.Watch(ctx, servicetraceroute.Selection{Hosts: []string{"203.0.113.7"}}) {
//		…
//	}
//
// Package trace holds the values that come out.
package servicetraceroute
