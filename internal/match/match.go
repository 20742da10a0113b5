package match

import (
	"fmt"
	"slices"

	"github.com/expr-lang/expr/vm"

	"servicetraceroute/internal/names"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Expr is a compiled expression. It implements service.Expr and is not safe for concurrent
// use.
type Expr struct {
	text string
	root *node
}

// node is an expression taken apart at its logical operators, so that what is known
// decides where it can: in name == "x" && dport == 443 another port needs no name.
type node struct {
	op          op
	left, right *node       // right is nil of a negation
	uses        uses        // of all below
	program     *vm.Program // of a leaf
}

type op uint8

const (
	leaf op = iota
	and
	or
	not
)

// truth is one of Kleene's three values, the unknown one by what it waits for. The order
// tells which of two unknown ones an expression goes by: what is asked soonest.
type truth uint8

const (
	no truth = iota
	yes
	never  // cannot be found out
	listen // the client's first words will tell
	wait   // the owner will
)

// String is the expression as written.
func (e *Expr) String() string { return e.text }

// Uses implements service.Expr.
func (e *Expr) Uses(f service.Fields) bool {
	u := e.root.uses
	return f&service.NameFields != 0 && u&ofWords != 0 || f&service.OwnerFields != 0 && u&ofOwner != 0 ||
		f&service.InterfaceField != 0 && u&usesInterface != 0
}

// Match implements service.Expr.
func (e *Expr) Match(t trace.Tuple, k *service.Known) service.Verdict {
	m := see(t, k)
	if e.root.uses&usesName == 0 || m.listen != 0 || m.Name != "" || len(k.Names) == 0 {
		return verdict(e.root.eval(m))
	}
	return e.byAddress(m, k.Names)
}

func verdict(v truth) service.Verdict {
	switch v {
	case yes:
		return service.Yes
	case wait:
		return service.Wait
	case listen:
		return service.Listen
	}
	return service.No
}

// byAddress asks with each name by which the address was asked for. They have to agree,
// as with a selection by hosts; what one that fits led to is not somebody else's.
func (e *Expr) byAddress(m *moment, all []names.Name) service.Verdict {
	var fit, others []names.Name
	for _, n := range all {
		m.Name = n.Asked()
		switch v := e.root.eval(m); v {
		case yes:
			fit = append(fit, n)
		case wait, listen:
			return verdict(v)
		default:
			others = append(others, n)
		}
	}
	if len(fit) == 0 {
		return service.No
	}
	for _, n := range others {
		led := func(f names.Name) bool { return slices.Contains(f.Chain, n.Asked()) }
		if !slices.ContainsFunc(fit, led) {
			return service.Unclear
		}
	}
	return service.Yes
}

func (n *node) eval(m *moment) truth {
	switch n.op {
	case not:
		switch v := n.left.eval(m); v {
		case yes:
			return no
		case no:
			return yes
		default:
			return v
		}
	case and:
		return both(n.left.eval(m), func() truth { return n.right.eval(m) }, no, yes)
	case or:
		return both(n.left.eval(m), func() truth { return n.right.eval(m) }, yes, no)
	}
	switch {
	case n.uses&m.wait != 0:
		return wait
	case n.uses&m.listen != 0:
		return listen
	case n.uses&m.never != 0:
		return never
	}
	is, err := n.run(m)
	switch {
	case err != nil:
		return never // none that compiles is known to: see FuzzMatch
	case is:
		return yes
	}
	return no
}

// run evaluates a leaf.
func (n *node) run(m *moment) (bool, error) {
	machine := vm.VM{MemoryBudget: memoryBudget}
	out, err := machine.Run(n.program, &m.flow)
	if err != nil {
		return false, err
	}
	is, ok := out.(bool)
	if !ok {
		return false, fmt.Errorf("match: %T is no truth value", out)
	}
	return is, nil
}

// both is a logical operator: one value decides, the other changes nothing.
func both(left truth, right func() truth, decides, neutral truth) truth {
	if left == decides {
		return decides
	}
	r := right()
	switch {
	case r == decides, left == neutral:
		return r
	case r == neutral:
		return left
	}
	return max(left, r)
}
