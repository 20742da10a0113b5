package service

import (
	"testing"

	"servicetraceroute/internal/owner"
	"servicetraceroute/trace"
)

// verdict is an expression that always says the same.
type verdict struct {
	Verdict
	uses Fields
}

func (v verdict) Match(trace.Tuple, *Known) Verdict { return v.Verdict }
func (v verdict) Uses(f Fields) bool                { return v.uses&f != 0 }
func (v verdict) String() string                    { return "expr " + string('0'+rune(v.Verdict)) }

func TestMatchExprs(t *testing.T) {
	flow := tuple("192.0.2.1:40000", "203.0.113.7:443")
	exprs := func(list ...Verdict) (all []Expr) {
		for _, v := range list {
			all = append(all, verdict{Verdict: v})
		}
		return all
	}
	net := []Rule{rule("203.0.113.0/24", "net")}
	elsewhere := []Rule{rule("198.51.100.0/24", "x")}
	curl := &owner.Owner{Process: trace.Process{PID: 42, Name: "curl"}, Final: true}
	for _, test := range []struct {
		name string
		s    Selector
		k    Known
		want Verdict
		who  string
	}{
		{"none is true", Selector{Exprs: exprs(No, No)}, Known{}, No, ""},
		{"one is", Selector{Exprs: exprs(No, Yes)}, Known{}, Yes, "expr 5"},
		{"one waits", Selector{Exprs: exprs(Listen, No, Wait)}, Known{}, Listen, ""},
		{"names disagree", Selector{Exprs: exprs(Unclear, No)}, Known{}, Unclear, ""},
		{"hosts come first", Selector{Rules: net, Exprs: exprs(Yes)}, Known{}, Yes, "net"},
		{"another host", Selector{Rules: elsewhere, Exprs: exprs(Yes)}, Known{}, Yes, "expr 5"},
		{"words may tell a host", Selector{Domains: suffixes{"a.example"}, Exprs: exprs(Yes)}, Known{Words: Words{Awaited: true}}, Listen, ""},
		{"words told another", Selector{Domains: suffixes{"a.example"}, Exprs: exprs(Yes)}, Known{Words: Words{Name: "b.example"}}, Yes, "expr 5"},
		{"narrowed", Selector{Exprs: exprs(Yes), Ports: []PortRange{{80, 80}}}, Known{}, No, ""},
		{"narrowed by an owner to come", Selector{Exprs: exprs(Yes), PIDs: []int{42}}, Known{}, Wait, ""},
		{"narrowed by an owner", Selector{Exprs: exprs(Yes), PIDs: []int{42}}, Known{Owner: curl}, Yes, "expr 5"},
		{"not without an expression", Selector{Exprs: exprs(No), PIDs: []int{42}}, Known{Owner: curl}, No, ""},
	} {
		got, v := test.s.Match(flow, &test.k)
		if v != test.want || v == Yes && got.Name != test.who || v == Yes && got.Name != "net" && (got.By != trace.ByExpr || got.Value != test.who) {
			t.Errorf("%s: %+v, verdict %d, want %d %q", test.name, got, v, test.want, test.who)
		}
	}
}

// What has to be captured and asked for follows from what expressions use.
func TestExprUses(t *testing.T) {
	for _, uses := range []Fields{0, NameFields, OwnerFields, InterfaceField} {
		s := Selector{Rules: []Rule{rule("203.0.113.0/24", "net")}, Exprs: []Expr{verdict{No, uses}}}
		if s.ByName() != (uses == NameFields) || s.ByOwner() != (uses == OwnerFields) || s.Want().Everyone != (uses == OwnerFields) ||
			s.ByInterface() != (uses == InterfaceField) {
			t.Errorf("uses %d: %v %v %v", uses, s.ByName(), s.ByOwner(), s.ByInterface())
		}
		if len(s.Prefixes()) != 0 {
			t.Error("an expression may select flows to anywhere")
		}
	}
}
