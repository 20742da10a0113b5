// Package engine owns all state of tracing: the flow table, the traces in
// progress, the probes that were sent and the responders' limits. Packets and
// the time go in by Step, probes and records come out. It starts no goroutine,
// reads no clock and opens no socket; one goroutine calls it.
package engine
