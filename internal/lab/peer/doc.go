// Package peer is the real applications of a lab: servers for HTTPS, DNS, TCP
// workloads and UDP echo, the clients that use them, and what the node's own
// kernel says about how they fared (counters, TCP_INFO).
//
// Everything a client receives is compared byte by byte with what the other side
// must have sent: contents are streams that both ends compute from a seed.
//
// Servers run until Stop or until their node ends. The exported functions that
// take a node.Caller are for the controller; what they ask for happens in the
// node's process.
package peer
