package match

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"

	"servicetraceroute/internal/domain"
	"servicetraceroute/internal/owner"
)

const (
	// maxText bounds an expression, maxNodes what it consists of, maxRange a range of
	// numbers, memoryBudget the lists of one evaluation.
	maxText      = 1000
	maxNodes     = 500
	maxRange     = 65536
	memoryBudget = 10000
)

const example = `for example: dport == 443 && domain(name, "*.example.com")`

// Error says what is wrong with an expression, and where.
type Error struct {
	Expr string
	Why  string
	At   int    // of the first character that is wrong, from 1; 0: the whole
	Hint string // what to write instead
}

// Error is without the hint, which has a line of its own in this project.
func (e *Error) Error() string {
	text := e.Expr
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:100], "") + "…"
	}
	if e.At == 0 {
		return fmt.Sprintf("%q: %s", text, e.Why)
	}
	return fmt.Sprintf("%q: %s, at character %d", text, e.Why, e.At)
}

// Compile reads an expression. Its error is an *Error.
func Compile(text string) (_ *Expr, err error) {
	defer func() {
		// The library's bugs are not to end this program.
		if r := recover(); r != nil {
			err = &Error{Expr: text, Why: fmt.Sprintf("cannot be read: %v", r), Hint: example}
		}
	}()
	switch {
	case strings.TrimSpace(text) == "":
		return nil, &Error{Expr: text, Why: "empty", Hint: example}
	case len(text) > maxText:
		return nil, &Error{Expr: text, Why: fmt.Sprintf("%d bytes long, expressions may have %d", len(text), maxText), Hint: "write several: they are alternatives"}
	case !utf8.ValidString(text):
		return nil, &Error{Expr: text, Why: "not UTF-8", Hint: example}
	}
	tree, err := parser.Parse(text)
	if err != nil {
		return nil, fromLibrary(text, err)
	}
	r := &reader{text: text, lists: map[string]*domain.Set{}, prefixes: map[string]netip.Prefix{}}
	if err := r.check(tree.Node, false); err != nil {
		return nil, err
	}
	// Once as written, for positions in what it says of types.
	if _, err := expr.Compile(text, r.options()...); err != nil {
		return nil, fromLibrary(text, err)
	}
	root, err := r.split(tree.Node)
	if err != nil {
		return nil, err
	}
	return &Expr{text, root}, nil
}

// fromLibrary turns an error of the library into one of ours.
func fromLibrary(text string, err error) error {
	var at *file.Error
	if !errors.As(err, &at) {
		return &Error{Expr: text, Why: err.Error(), Hint: example}
	}
	return &Error{Expr: text, Why: at.Message, At: at.From + 1, Hint: example}
}

// reader checks and compiles one expression.
type reader struct {
	text     string
	nodes    int
	lists    map[string]*domain.Set
	prefixes map[string]netip.Prefix
}

func (r *reader) wrong(n ast.Node, hint, format string, args ...any) error {
	return &Error{r.text, fmt.Sprintf(format, args...), n.Location().From + 1, hint}
}

// options are the language: the fields, the functions, a truth value in the end.
func (r *reader) options() []expr.Option {
	texts := func(args []any) []string {
		var all []string
		for _, a := range args {
			if text, ok := a.(string); ok {
				all = append(all, text)
			}
		}
		return all
	}
	cidr := func(args ...any) (any, error) {
		all := texts(args)
		a, err := netip.ParseAddr(all[0])
		in := func(p string) bool { return r.prefixes[p].Contains(a) }
		return err == nil && slices.ContainsFunc(all[1:], in), nil
	}
	in := func(name string, patterns []string) bool {
		fits := func(p string) bool { _, ok := r.lists[p].Match(name); return ok }
		return slices.ContainsFunc(patterns, fits)
	}
	dom := func(args ...any) (any, error) {
		patterns := texts(args[1:])
		if all, ok := args[0].([]string); ok {
			return slices.ContainsFunc(all, func(name string) bool { return in(name, patterns) }), nil
		}
		return in(texts(args)[0], patterns), nil
	}
	below := func(args ...any) (any, error) {
		all := texts(args)
		return slices.ContainsFunc(all[1:], func(top string) bool { return owner.Below(all[0], strings.TrimRight(top, "/")) || top == "/" }), nil
	}
	return []expr.Option{
		expr.Env(&flow{}), expr.AsBool(), expr.WarnOnAny(), expr.MaxNodes(10 * maxNodes),
		expr.Function("cidr", cidr, new(func(string, ...string) bool)),
		expr.Function("domain", dom, new(func(string, ...string) bool), new(func([]string, ...string) bool)),
		expr.Function("below", below, new(func(string, ...string) bool)),
	}
}

// split takes a checked expression apart at its logical operators.
func (r *reader) split(n ast.Node) (*node, error) {
	switch n := n.(type) {
	case *ast.UnaryNode:
		if n.Operator == "!" || n.Operator == "not" {
			left, err := r.split(n.Node)
			if err != nil {
				return nil, err
			}
			return &node{op: not, left: left, uses: left.uses}, nil
		}
	case *ast.BinaryNode:
		ops := map[string]op{"&&": and, "and": and, "||": or, "or": or}
		if op := ops[n.Operator]; op != leaf {
			left, err := r.split(n.Left)
			if err != nil {
				return nil, err
			}
			right, err := r.split(n.Right)
			if err != nil {
				return nil, err
			}
			return &node{op: op, left: left, right: right, uses: left.uses | right.uses}, nil
		}
	}
	program, err := expr.Compile(n.String(), r.options()...)
	if err != nil {
		return nil, fromLibrary(r.text, err)
	}
	seen := &collector{}
	ast.Walk(&n, seen)
	return &node{program: program, uses: seen.uses}, nil
}

// collector notes which fields occur.
type collector struct{ uses uses }

// Visit implements ast.Visitor.
func (c *collector) Visit(n *ast.Node) {
	if id, ok := (*n).(*ast.IdentifierNode); ok {
		c.uses |= fields[id.Value].uses
	}
}
