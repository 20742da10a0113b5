// Package finding derives from a finished trace what happened to the flow's packets on their
// way, and where: pure functions from a trace, and from what routers said about the flow's own
// packets, to records. docs/findings.md has the rule of each kind, how much it is trusted and
// what it cannot tell; a rule that is not there is not here either.
//
// It keeps nothing, reads no clock and changes no trace. The engine calls it.
package finding
