// Package evaluate is the pure part of the evaluation (make eval): it draws a seeded random
// Internet as a scenario.Network, works out from its routes alone how often a new flow takes
// another way, counts, and writes tables and plots. Networks are run, and flows traced, by
// tests of the root package, in memory and in namespaces.
//
// Nothing here reads a clock, and nothing depends on the order of a map: the same seed gives
// the same bytes.
package evaluate
