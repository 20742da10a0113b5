package servicetraceroute_test

import (
	"testing"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// A watch whose reader panics is over, so that nothing is probed for nobody.
func TestWatchOfPanic(t *testing.T) {
	m := newMemory()
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: m, Sink: m})
	if err != nil {
		t.Fatal(err)
	}
	defer tracer.Close()
	hosts := servicetraceroute.Selection{Hosts: []string{server.Addr().String()}}
	for name, body := range map[string]func(ready bool){
		"ready": func(ready bool) {
			if ready {
				panic(t)
			}
		},
		"loop": func(ready bool) {
			if !ready {
				panic(t)
			}
		},
	} {
		sel := hosts
		sel.Ready = func() { body(true) }
		func() {
			defer func() {
				if v := recover(); v != t {
					t.Errorf("%s: %v", name, v)
				}
			}()
			for ev := range tracer.Watch(t.Context(), sel) {
				if _, ok := ev.(*trace.Flow); ok {
					body(false)
				}
			}
		}()
		if n := tracer.Watches(); n != 0 {
			t.Errorf("%s: %d watches go on", name, n)
		}
	}
}
