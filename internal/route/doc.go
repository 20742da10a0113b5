// Package route asks the kernel at which interface the packets of a flow leave. It sends
// nothing and takes no privilege. The command's dial asks where it sees no packets that would
// tell.
package route
