// Package firewall holds this project's one rule in the host's packet filter: ICMP errors
// that quote a probe of ours are dropped before the host's stack, or a host behind it, can
// tell an application of them. Errors about an application's own packets pass. A packet
// socket sees both, because it comes before the filter.
//
// The rule and the probes it knows are a table of nf_tables with an owner: the kernel
// removes it when the Rule is closed, and when its process dies, however that happens. The
// engine decides which probes need it; the Tracer's loop adds them before it sends them.
package firewall
