// Package health tells how a TCP flow does, from its own packets alone: round-trip times from
// acknowledgements and timestamps, retransmissions, duplicate acknowledgements, segments out
// of order, closed windows, goodput, in both directions and over the last seconds. It does no
// I/O and reads no clock; the engine shows it the segments of the flows that are selected.
package health
