package service

import "servicetraceroute/trace"

// Fields are what an expression may look at beside a flow's tuple.
type Fields uint8

// The fields, each set for itself.
const (
	NameFields     Fields = 1 << iota // names of the destination
	OwnerFields                       // the flow's process
	InterfaceField                    // where it is followed
)

// Expr is an expression over a flow.
type Expr interface {
	// Match tells whether it is true of a flow, as far as that is known.
	Match(t trace.Tuple, k *Known) Verdict
	// Uses reports whether any of the fields occurs in it.
	Uses(f Fields) bool
	// String is the expression as written.
	String() string
}

// use reports whether any expression uses any of the fields.
func (s *Selector) use(f Fields) bool {
	for _, e := range s.Exprs {
		if e.Uses(f) {
			return true
		}
	}
	return false
}

// expressed is the verdict of the first expression that is true, or may become so.
func (s *Selector) expressed(t trace.Tuple, k *Known) (why trace.Service, best Verdict) {
	best = No
	for _, e := range s.Exprs {
		v := e.Match(t, k)
		if v > best {
			best = v
		}
		if v == Yes {
			text := e.String()
			return trace.Service{Name: text, By: trace.ByExpr, Value: text}, Yes
		}
	}
	return why, best
}
