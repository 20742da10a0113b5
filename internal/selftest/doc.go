// Package selftest runs the harm suite on the machine of whoever asks: flows between
// two network namespaces over its own kernel, each traced and, as its twin, untraced.
// What the twins' applications received and what the kernel counted at both ends is
// compared, and comes out as a [Record] that can be sent in: it holds no address,
// name of a host or a user, nor path. The rules of its verdict are pure ([Record.Judge]),
// as are its text and the table of docs/stacks.md that is made of such records.
//
// The command selftest calls [Run]. The tests of harm of the whole share how a flow is
// measured ([Bench]) and which counters count as harm ([Excess]).
package selftest
