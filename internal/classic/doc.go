// Package classic is the traceroute that everybody knows: probes in flows of
// their own. It is here to be compared with: load balancers, firewalls and NATs
// treat such flows differently from an application's.
//
// UDP goes to a new port with every TTL, from 33434 on, as Van Jacobson's
// traceroute does; TCP sends a SYN from a new source port with every TTL, as
// tcptraceroute does. IPv4 only.
package classic
