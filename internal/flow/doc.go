// Package flow follows flows passively: a bounded table of the flows that
// packets were seen of, each with the live TCP state that a probe has to copy or
// keep away from. It does no I/O and reads no clock. It knows nothing of probes:
// the engine keeps captured copies of those away from it.
package flow
