// Package trace holds the values that Service Traceroute produces: flows,
// traces with their hops and replies, findings and statistics, and their stable
// JSON form ("service-traceroute/1").
//
// The package imports the standard library only and does no I/O. Every value is
// plain data: copying is safe as long as slices are not modified afterwards,
// and a value that was handed out is never written again by this module.
package trace
