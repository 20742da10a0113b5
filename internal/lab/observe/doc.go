// Package observe is the witness of a lab: it notes what the nodes really sent,
// forwarded and answered, and Truth joins the notes of all nodes. What the product
// shows is compared with that, never with what the product believes.
//
// An observer sits on a packet socket in a node's namespace and keeps
//
//   - counts of every TCP and UDP flow by interface and direction,
//   - single packets: all that look like probes, and a sample of the others. The
//     sample is chosen by the packet's own invariant fields, so every node chooses
//     the same packets and their way can be followed (trajectory sampling, Duffield
//     and Grossglauser 2001),
//   - the ICMP errors that the node itself made.
//
// Nothing here uses the product's code.
package observe
