package match

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"

	"servicetraceroute/internal/domain"
	"servicetraceroute/internal/spell"
)

var (
	operators = []string{"==", "!=", "<", "<=", ">", ">=", "&&", "and", "||", "or", "in", "contains", "startsWith", "endsWith", "matches"}
	loops     = []string{"any", "all", "none", "one"}
	functions = []string{"cidr", "domain", "below"}
)

// check refuses what is not part of this language, and brings constants into the form of
// what they are compared with. Inside is whether it is within a loop: these do not nest.
func (r *reader) check(n ast.Node, inside bool) error {
	if r.nodes++; r.nodes > maxNodes {
		return &Error{Expr: r.text, Why: fmt.Sprintf("more than %d parts", maxNodes), Hint: "write several: they are alternatives"}
	}
	switch n := n.(type) {
	case *ast.IntegerNode, *ast.StringNode, *ast.BoolNode:
		return nil
	case *ast.PointerNode:
		if n.Name == "" {
			return nil
		}
	case *ast.IdentifierNode:
		if _, ok := fields[n.Value]; ok {
			return nil
		}
		return r.wrong(n, suggest(n.Value, Fields(), "fields: "), "unknown field %s", n.Value)
	case *ast.UnaryNode:
		return r.check(n.Node, inside)
	case *ast.ArrayNode:
		return r.all(inside, n.Nodes...)
	case *ast.BinaryNode:
		return r.binary(n, inside)
	case *ast.CallNode:
		return r.call(n, inside)
	case *ast.PredicateNode:
		return r.check(n.Node, true)
	case *ast.BuiltinNode:
		return r.builtin(n, inside)
	}
	return r.wrong(n, "fields, "+strings.Join(operators, " ")+", and "+strings.Join(known(), ", "), "this is not available here")
}

// builtin lets the library's functions on lists be used on the names, once: so nothing
// takes longer than there are names.
func (r *reader) builtin(n *ast.BuiltinNode, inside bool) error {
	switch {
	case n.Name == "len":
	case !slices.Contains(loops, n.Name):
		return r.wrong(n, "functions: "+strings.Join(known(), ", "), "%s is not available here", n.Name)
	case inside:
		return r.wrong(n, "", "%s within another one", n.Name)
	case len(n.Arguments) == 0 || n.Arguments[0].String() != "names":
		return r.wrong(n, `for example: any(names, # contains "cdn")`, "%s takes the names", n.Name)
	}
	return r.all(inside, n.Arguments...)
}

func (r *reader) all(inside bool, list ...ast.Node) error {
	for _, n := range list {
		if err := r.check(n, inside); err != nil {
			return err
		}
	}
	return nil
}

func known() []string { return slices.Concat(functions, loops, []string{"len"}) }

// suggest is the hint about a word that does not exist.
func suggest(word string, words []string, all string) string {
	if like := spell.Nearest(word, words); like != "" {
		return "did you mean " + like + "?"
	}
	return all + strings.Join(words, ", ")
}

func (r *reader) binary(n *ast.BinaryNode, inside bool) error {
	if !slices.Contains(operators, n.Operator) {
		return r.wrong(n, "operators: "+strings.Join(operators, " "), "the operator %s is not available here", n.Operator)
	}
	if err := r.check(n.Left, inside); err != nil {
		return err
	}
	if numbers, ok := n.Right.(*ast.BinaryNode); ok && n.Operator == "in" && numbers.Operator == ".." {
		return r.numbers(numbers)
	}
	if err := r.check(n.Right, inside); err != nil {
		return err
	}
	switch n.Operator {
	case "matches":
		text, ok := n.Right.(*ast.StringNode)
		if !ok {
			return r.wrong(n.Right, `for example: name matches "^cdn[0-9]+"`, "the regular expression of matches has to be written out")
		}
		if err := domain.Parse("/" + text.Value + "/"); err != nil {
			return r.badPattern(n.Right, err)
		}
	case "==", "!=", "in", "contains", "startsWith", "endsWith":
		if err := r.constants(n.Operator, n.Left, n.Right); err != nil {
			return err
		}
		return r.constants(n.Operator, n.Right, n.Left)
	}
	return nil
}

// numbers checks a range, which stands for its ends only.
func (r *reader) numbers(n *ast.BinaryNode) error {
	from, ok := n.Left.(*ast.IntegerNode)
	to, ok2 := n.Right.(*ast.IntegerNode)
	if !ok || !ok2 || from.Value < 0 || to.Value < from.Value || to.Value > maxRange {
		return r.wrong(n, "for example: dport in 8000..8999", "not a range of numbers from 0 to %d", maxRange)
	}
	return nil
}

// constants checks the texts that a field is compared with.
func (r *reader) constants(operator string, what, with ast.Node) error {
	name := "name" // what # stands for
	if id, ok := what.(*ast.IdentifierNode); ok {
		name = id.Value
	} else if _, ok := what.(*ast.PointerNode); !ok {
		return nil
	}
	f := fields[name]
	if f.constant == nil || (operator == "contains" || operator == "startsWith" || operator == "endsWith") && f.uses&ofWords == 0 {
		return nil
	}
	list := []ast.Node{with}
	if array, ok := with.(*ast.ArrayNode); ok {
		list = array.Nodes
	}
	for _, n := range list {
		text, ok := n.(*ast.StringNode)
		if !ok {
			continue
		}
		if operator == "contains" || operator == "startsWith" || operator == "endsWith" {
			text.Value = strings.ToLower(text.Value)
			continue
		}
		value, err := f.constant(text.Value)
		if err != nil {
			hint := example
			if name == "src" || name == "dst" {
				hint = `prefixes: cidr(` + name + `, "10.0.0.0/8"); names: domain(name, "example.com")`
			}
			return r.wrong(n, hint, "%v", err)
		}
		text.Value = value
	}
	return nil
}

// call checks a function's arguments behind the first, which are read here and now.
func (r *reader) call(n *ast.CallNode, inside bool) error {
	id, ok := n.Callee.(*ast.IdentifierNode)
	if !ok {
		return r.wrong(n, "functions: "+strings.Join(known(), ", "), "this is not available here")
	}
	if !slices.Contains(functions, id.Value) {
		return r.wrong(n, suggest(id.Value, known(), "functions: "), "unknown function %s", id.Value)
	}
	if len(n.Arguments) < 2 {
		return r.wrong(n, usages[id.Value], "%s needs a field and what it is held against", id.Value)
	}
	if err := r.check(n.Arguments[0], inside); err != nil {
		return err
	}
	for _, arg := range n.Arguments[1:] {
		text, ok := arg.(*ast.StringNode)
		if !ok {
			return r.wrong(arg, usages[id.Value], "what %s is held against has to be written out", id.Value)
		}
		if err := r.argument(id.Value, text); err != nil {
			return err
		}
	}
	return nil
}

var usages = map[string]string{
	"cidr":   `for example: cidr(dst, "10.0.0.0/8", "2001:db8::/32")`,
	"domain": `for example: domain(name, "*.example.com", "/^cdn[0-9]+/")`,
	"below":  `for example: below(cgroup, "/user.slice")`,
}

func (r *reader) argument(function string, n *ast.StringNode) error {
	if r.nodes++; r.nodes > maxNodes {
		return &Error{Expr: r.text, Why: fmt.Sprintf("more than %d parts", maxNodes), Hint: "write several: they are alternatives"}
	}
	switch function {
	case "cidr":
		p, err := netip.ParsePrefix(n.Value)
		if a, addrErr := netip.ParseAddr(n.Value); addrErr == nil {
			a = a.Unmap().WithZone("")
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return r.wrong(n, usages["cidr"], "%q is neither an address nor a prefix", n.Value)
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		r.prefixes[n.Value] = p.Masked()
	case "domain":
		set, err := domain.New([]string{n.Value})
		if err != nil {
			return r.badPattern(n, err)
		}
		r.lists[n.Value] = set
	case "below":
		if !strings.HasPrefix(n.Value, "/") {
			return r.wrong(n, usages["below"], "%q does not begin with a slash", n.Value)
		}
	}
	return nil
}

// badPattern is the error of a name or a regular expression.
func (r *reader) badPattern(n ast.Node, err error) error {
	var bad *domain.Error
	if errors.As(err, &bad) {
		return r.wrong(n, bad.Hint, "%v", err)
	}
	return r.wrong(n, "", "%v", err)
}
