// Package join puts together the traces of one flow that were taken at both of its hosts:
// its way there and its way back. Addresses and ports may have been translated on the way;
// then time helps, and what stays ambiguous is said to be. It is pure: records in, pairs out.
package join
