// Package owner answers which process a flow belongs to. It watches for the first
// packet of connections, asks the kernel at once whose socket that is
// (sock_diag(7)) and finds the process among the descriptors in /proc. A socket
// that is gone by then has no owner: what is not known is never guessed.
//
// It knows nothing of selections and traces; the Tracer's loop takes what it finds
// as values from a channel.
package owner
