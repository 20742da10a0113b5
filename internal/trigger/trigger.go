// Package trigger compiles what users write with --when: expressions over how a flow does
// (health.State), in the part of the language of github.com/expr-lang/expr that compares
// numbers. It does no I/O.
package trigger

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/vm"

	"servicetraceroute/internal/health"
	"servicetraceroute/internal/spell"
)

const (
	// maxText bounds an expression, maxNodes what it consists of, memoryBudget one evaluation.
	maxText      = 1000
	maxNodes     = 200
	memoryBudget = 1000
)

const example = `for example: retransmits >= 5 || rtt_factor > 3 && rtt_ms > 50 || stalled_ms > 2000`

var operators = []string{"==", "!=", "<", "<=", ">", ">=", "&&", "and", "||", "or", "+", "-", "*", "/"}

// Error says what is wrong with an expression.
type Error struct {
	Expr string
	Why  string
	Hint string // what to write instead
}

// Error is without the hint.
func (e *Error) Error() string { return fmt.Sprintf("%.100q: %s", e.Expr, e.Why) }

// Expr is a compiled expression. It is not safe for concurrent use.
type Expr struct {
	text    string
	program *vm.Program
}

// Compile reads an expression. Its error is an *Error.
func Compile(text string) (_ *Expr, err error) {
	defer func() {
		// The library's bugs are not to end this program.
		if r := recover(); r != nil {
			err = &Error{text, fmt.Sprintf("cannot be read: %v", r), example}
		}
	}()
	switch {
	case strings.TrimSpace(text) == "":
		return nil, &Error{text, "empty", example}
	case len(text) > maxText:
		return nil, &Error{text, fmt.Sprintf("%d bytes long, an expression may have %d", len(text), maxText), example}
	}
	tree, err := parser.Parse(text)
	if err != nil {
		return nil, fromLibrary(text, err)
	}
	nodes := 0
	if err := check(text, tree.Node, &nodes); err != nil {
		return nil, err
	}
	program, err := expr.Compile(text, expr.Env(&health.State{}), expr.AsBool(), expr.MaxNodes(10*maxNodes))
	if err != nil {
		return nil, fromLibrary(text, err)
	}
	return &Expr{text, program}, nil
}

// String is the expression as written.
func (e *Expr) String() string { return e.text }

// Hurts reports whether the expression is true of a flow that does like this. What cannot be
// computed is not.
func (e *Expr) Hurts(s health.State) bool {
	machine := vm.VM{MemoryBudget: memoryBudget}
	out, err := machine.Run(e.program, &s)
	is, ok := out.(bool)
	return err == nil && ok && is
}

// Fields returns the names of the fields, sorted.
func Fields() (all []string) {
	t := reflect.TypeFor[health.State]()
	for i := range t.NumField() {
		all = append(all, t.Field(i).Tag.Get("expr"))
	}
	slices.Sort(all)
	return all
}

// check refuses what is not part of this language.
func check(text string, n ast.Node, nodes *int) error {
	if *nodes++; *nodes > maxNodes {
		return &Error{text, fmt.Sprintf("more than %d parts", maxNodes), example}
	}
	switch n := n.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return nil
	case *ast.IdentifierNode:
		if slices.Contains(Fields(), n.Value) {
			return nil
		}
		hint := "fields: " + strings.Join(Fields(), ", ")
		if like := spell.Nearest(n.Value, Fields()); like != "" {
			hint = "did you mean " + like + "?"
		}
		return &Error{text, "unknown field " + n.Value, hint}
	case *ast.UnaryNode:
		return check(text, n.Node, nodes)
	case *ast.BinaryNode:
		if !slices.Contains(operators, n.Operator) {
			break
		}
		if err := check(text, n.Left, nodes); err != nil {
			return err
		}
		return check(text, n.Right, nodes)
	}
	return &Error{text, "only numbers are compared here", example}
}

// fromLibrary turns an error of the library into one of ours.
func fromLibrary(text string, err error) error {
	var at *file.Error
	if errors.As(err, &at) {
		return &Error{text, fmt.Sprintf("%s, at character %d", at.Message, at.From+1), example}
	}
	return &Error{text, err.Error(), example}
}
