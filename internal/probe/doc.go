// Package probe decides what to send into a flow and what the answers mean: the
// plan of a trace (which TTL when, when to stop), the bytes of a probe, the
// table of probes that were sent, the matching of replies to them, and the
// responders' rate limits. It does no I/O and reads no clock; the engine owns
// every value of it.
package probe
