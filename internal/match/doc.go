// Package match compiles what users write with --match: expressions over a flow, in a part
// of the language of github.com/expr-lang/expr, with typed fields and without anything that
// could loop, grow or act. It decides in three values, since what a client says first and
// which process a flow belongs to is known later than its ports, or never. It does no I/O.
package match
