// Package link is a wire with delay, jitter, a rate and losses: a node with two
// interfaces carries frames of any kind from one to the other. Kernels without
// netem have nothing like it, and netem cannot do what tests of a prober need
// most: lose the same segments of two flows, one traced and one not.
//
// Each way, a frame meets first the loss, then a drop-tail queue that is served at
// the rate, then the delay. Order is always kept.
//
// It may also be a box that changes what it carries: firewalls that hide sequence
// numbers, and quotes as short as old routers make them.
//
// The interfaces at the far ends must not leave segmentation to the link: a frame
// longer than the MTU is dropped and counted as Oversize.
package link
