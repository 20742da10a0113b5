// Package evidence keeps the packets on which traces rest: it puts what the
// engine says of packets in time order, waits for the verdicts, words them as
// comments and writes a pcapng file. It decides nothing about packets. The root
// package's loop is its caller; docs/decisions/0021-pcapng.md has the reasons.
package evidence
