// Package whole holds tests of the built command in networks of real kernels: the
// very binary that users get, with its sockets, its signals and its privileges.
package whole
