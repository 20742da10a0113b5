// Package localise tells at which hop of a path delay begins to rise, or loss begins, from
// probes that the hops answered, or did not, over time; and tells a router that limits its
// ICMP errors from loss. It states nothing that does not pass the rules of
// docs/localisation.md. It does no I/O and reads no clock.
package localise
