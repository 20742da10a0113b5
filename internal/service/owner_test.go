package service

import (
	"testing"

	"servicetraceroute/internal/owner"
	"servicetraceroute/trace"
)

func TestMatchOwner(t *testing.T) {
	flow := tuple("192.0.2.1:40000", "203.0.113.7:443")
	group := &owner.Owner{Process: trace.Process{Cgroup: "/user/app/sub"}}
	curl := &owner.Owner{Process: trace.Process{PID: 42, Name: "curl", Cgroup: "/user/app/sub"}, Exe: "curl-8", Final: true}
	child := &owner.Owner{Process: trace.Process{PID: 43, Name: "x"}, Under: 7, Final: true}
	lost := &owner.Owner{Final: true}
	rules := []Rule{rule("203.0.113.0/24", "net")}
	ran := trace.Service{Name: "curl", By: trace.ByRun, Value: "curl"}
	for _, test := range []struct {
		name string
		s    Selector
		o    *owner.Owner
		want Verdict
		by   trace.By
	}{
		{"nobody is needed", Selector{Rules: rules}, nil, Yes, trace.ByPrefix},
		{"not known yet", Selector{Processes: []string{"curl"}}, nil, Wait, 0},
		{"only the group is known", Selector{Processes: []string{"curl"}}, group, Wait, 0},
		{"by name", Selector{Processes: []string{"wget", "curl"}}, curl, Yes, trace.ByProcess},
		{"by the executable's name", Selector{Processes: []string{"curl-8"}}, curl, Yes, trace.ByProcess},
		{"another name", Selector{Processes: []string{"cur"}}, curl, No, 0},
		{"never found out", Selector{Processes: []string{"curl"}}, lost, No, 0},
		{"by number", Selector{PIDs: []int{1, 42}}, curl, Yes, trace.ByProcess},
		{"no number is 0", Selector{PIDs: []int{0}}, lost, No, 0},
		{"another number", Selector{PIDs: []int{4}}, curl, No, 0},
		{"by group, before the process is known", Selector{Cgroups: []string{"/user/app"}}, group, Yes, trace.ByCgroup},
		{"a group of a similar name", Selector{Cgroups: []string{"/user/ap"}}, curl, No, 0},
		{"every group", Selector{Cgroups: []string{"/"}}, curl, Yes, trace.ByCgroup},
		{"no group is known", Selector{Cgroups: []string{"/"}}, child, No, 0},
		{"all conditions", Selector{Cgroups: []string{"/user"}, PIDs: []int{42}, Processes: []string{"curl"}}, curl, Yes, trace.ByProcess},
		{"one of them fails", Selector{Cgroups: []string{"/user"}, PIDs: []int{43}}, curl, No, 0},
		{"one of them waits", Selector{Cgroups: []string{"/user"}, PIDs: []int{42}}, group, Wait, 0},
		{"run, by group", Selector{Run: &Run{Service: ran, Cgroup: "/user/app"}}, group, Yes, trace.ByRun},
		{"run, by tree", Selector{Run: &Run{Service: ran, Tree: 7}}, child, Yes, trace.ByRun},
		{"run, another tree", Selector{Run: &Run{Service: ran, Tree: 8}}, child, No, 0},
		{"a host, narrowed", Selector{Rules: rules, PIDs: []int{42}}, curl, Yes, trace.ByPrefix},
		{"another host", Selector{Rules: []Rule{rule("198.51.100.0/24", "x")}, PIDs: []int{42}}, curl, No, 0},
		{"another host need not wait", Selector{Rules: []Rule{rule("198.51.100.0/24", "x")}, PIDs: []int{42}}, nil, No, 0},
	} {
		got, v := test.s.Match(flow, &Known{Owner: test.o})
		if v != test.want || v == Yes && got.By != test.by {
			t.Errorf("%s: %+v, verdict %d, want %d", test.name, got, v, test.want)
		}
	}
}

func TestWant(t *testing.T) {
	s := Selector{Cgroups: []string{"/a"}, Run: &Run{Cgroup: "/b", Tree: 7}}
	w := s.Want()
	if w.Everyone || w.Tree != 7 || len(w.Cgroups) != 2 || len(s.Cgroups) != 1 {
		t.Errorf("%+v", w)
	}
	if w = (&Selector{Processes: []string{"x"}}).Want(); !w.Everyone {
		t.Errorf("%+v", w)
	}
	if len((&Selector{PIDs: []int{1}}).Prefixes()) != 0 {
		t.Error("a process may connect to anywhere")
	}
}
