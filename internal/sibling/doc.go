// Package sibling traces the siblings of a flow: new flows to the same
// destination, each with a flow identifier of its own that stays constant within
// it, as Paris traceroute has it (Augustin et al., IMC 2006). What they show
// beside the flow is what a traceroute would have told of its path.
//
// How many siblings it takes is decided by the stopping rule of the multipath
// detection algorithm (Veitch et al., INFOCOM 2009). A Session is pure: packets
// and the time go in, probes and siblings come out. The root package's Comparer
// gives it sockets.
package sibling
