// Package simnet is an in-memory Internet for tests: hosts with a small TCP,
// routers, load balancers, firewalls, NAT, lossy links. It is built from the same
// scenario descriptions as internal/lab, which runs them on real kernels, and
// gives the tracer the same two things, a capture.Source and an inject.Sink.
//
// One goroutine runs a heap of events. Made inside a testing/synctest bubble a Net
// runs in virtual time, so that round-trip times are exact and nothing sleeps;
// outside it runs in real time. What happens depends on the seed and on the times
// at which the tracer sends, on nothing else.
//
// Hosts react to wrong probes as Linux was measured to do, and count it: a test
// that lets the tracer do harm must see counters move. Simplified on purpose:
// congestion control stops growing when a queue builds, so that packets are lost
// only where a description says so; there is no tail-loss probe and no RACK, no
// fragmentation, no ARP and no UDP application.
package simnet
