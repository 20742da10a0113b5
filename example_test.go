package servicetraceroute_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// The flows of a service are traced as they appear.
func Example() {
	tracer, err := servicetraceroute.New(servicetraceroute.Config{})
	if errors.Is(err, os.ErrPermission) {
		log.Fatal("run this as root, or with CAP_NET_RAW: ", err)
	}
	if err != nil {
		log.Fatal(err)
	}
	defer tracer.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ev, err := range tracer.Watch(ctx, servicetraceroute.Selection{Hosts: []string{"www.example.com"}, Ports: []string{"443"}}) {
		if err != nil {
			log.Fatal(err)
		}
		switch ev := ev.(type) {
		case *trace.Trace:
			for _, hop := range ev.Hops {
				for _, reply := range hop.Replies {
					fmt.Println(hop.TTL, reply.Addr, reply.RTT)
				}
			}
			fmt.Println(ev.Reached, ev.Stop)
		case *trace.Stats:
			fmt.Println(ev.Traces.Done, "traces,", ev.Packets.Dropped, "packets lost")
		}
	}
}

// What a Watch yields: the flow when it is selected, its trace, statistics at the end.
func ExampleTracer_Watch() {
	network := newMemory() // of ExampleSource
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: network, Sink: network})
	if err != nil {
		log.Fatal(err)
	}
	defer tracer.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for ev, err := range tracer.Watch(ctx, servicetraceroute.Selection{Hosts: []string{"203.0.113.0/24"}}) {
		if err != nil {
			log.Fatal(err)
		}
		switch ev := ev.(type) {
		case *trace.Flow:
			fmt.Println(ev.State, ev.Dst, "by", ev.Service.By, ev.Service.Value)
		case *trace.Trace:
			fmt.Println(ev)
			cancel() // no error: what remains is yielded
		case *trace.Stats:
			fmt.Println("traces:", ev.Traces.Done)
		}
	}
	// Output:
	// matched 203.0.113.9:443 by prefix 203.0.113.0/24
	// tcp 192.0.2.1:40000 > 203.0.113.9:443: 1 192.0.2.254, 2 198.51.100.1, 3 203.0.113.9 (destination, complete)
	// traces: 1
}

// The next connection that somebody on this host opens to a server is traced; with a
// source address and port it would be exactly one.
func ExampleTracer_Trace() {
	tracer, err := servicetraceroute.New(servicetraceroute.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer tracer.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var flow trace.Flow
	flow.Proto = trace.TCP
	flow.Dst = netip.MustParseAddrPort("203.0.113.7:443")
	tr, err := tracer.Trace(ctx, flow)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tr) // when the minute was over: what was found so far, stopped as "deadline"
}

// A connection of this process is traced, while it is idle or in use.
func ExampleTracer_TraceConn() {
	tracer, err := servicetraceroute.New(servicetraceroute.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer tracer.Close()

	conn, err := tls.Dial("tcp", "www.example.com:443", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tr, err := tracer.TraceConn(ctx, conn)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tr)
}

// Every connection that an HTTP client opens is traced beside its requests.
func ExampleTracer_TraceConn_httpClient() {
	tracer, err := servicetraceroute.New(servicetraceroute.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer tracer.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var traces sync.WaitGroup
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = func(dial context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(dial, network, addr)
		if err == nil {
			// Not with the context of the dial, which ends with the request.
			traces.Go(func() { fmt.Println(tracer.TraceConn(ctx, conn)) })
		}
		return conn, err
	}
	client := http.Client{Transport: transport}
	resp, err := client.Get("https://www.example.com/")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	traces.Wait()
}

// A running Watch is given something else to look for.
func ExampleTracer_SetSelection() {
	network := newMemory() // of ExampleSource
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: network, Sink: network})
	if err != nil {
		log.Fatal(err)
	}
	defer tracer.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	first := servicetraceroute.Selection{Hosts: []string{"192.0.2.77"}}
	first.Ready = func() { // most programs change it later, from beside the loop
		err := tracer.SetSelection(ctx, servicetraceroute.Selection{Hosts: []string{"203.0.113.9"}})
		if err != nil {
			log.Print(err)
		}
	}
	for ev, err := range tracer.Watch(ctx, first) {
		if err != nil {
			log.Fatal(err)
		}
		if tr, ok := ev.(*trace.Trace); ok {
			fmt.Println(tr.Service.Value, tr.Stop)
			break // ends the Watch as well
		}
	}
	// Output:
	// 203.0.113.9 destination
}

// While a Tracer is paused it follows flows and begins no trace.
func ExampleTracer_Pause() {
	network := newMemory() // of ExampleSource
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: network, Sink: network})
	if err != nil {
		log.Fatal(err)
	}
	defer tracer.Close()

	tracer.Pause()
	for ev, err := range tracer.Watch(context.Background(), servicetraceroute.Selection{Hosts: []string{"203.0.113.9"}}) {
		if err != nil {
			log.Fatal(err)
		}
		switch ev := ev.(type) {
		case *trace.Flow:
			fmt.Println(ev.State, "and", tracer.Stats().Traces.Started, "traces begun")
			tracer.Resume()
			continue
		case *trace.Trace:
			fmt.Println(ev.Stop)
		}
		break
	}
	// Output:
	// matched and 0 traces begun
	// destination
}

// The newest trace of a flow can be asked for again.
func ExampleTracer_Last() {
	network := newMemory() // of ExampleSource
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: network, Sink: network})
	if err != nil {
		log.Fatal(err)
	}
	defer tracer.Close()

	key := trace.FlowKey{Proto: trace.TCP, Src: client, Dst: server}
	if _, ok := tracer.Last(key); !ok {
		fmt.Println("not traced yet")
	}
	tr, err := tracer.Trace(context.Background(), trace.Flow{Tuple: trace.Tuple{FlowKey: key}})
	if err != nil {
		log.Fatal(err)
	}
	last, ok := tracer.Last(key)
	fmt.Println(ok, last == tr)
	// Output:
	// not traced yet
	// true true
}

// Some services are traced in another way than the rest. Their names are as in
// records: for a Host, what is written here.
func ExampleSelection() {
	sel := servicetraceroute.Selection{
		Hosts:   []string{"www.example.com", "203.0.113.0/24"},
		Params:  servicetraceroute.Params{MaxTTL: 20},
		Retrace: 10 * time.Minute,
		Policies: map[string]servicetraceroute.Policy{
			"203.0.113.0/24": {Every: time.Minute, Params: servicetraceroute.Params{Algorithm: trace.HopByHop, Probes: 5}},
		},
	}
	fmt.Println(sel.Check())
	sel.Policies["203.0.113.0/24"] = servicetraceroute.Policy{Params: servicetraceroute.Params{Probes: -1}}
	fmt.Println(sel.Check())
	// Output:
	// <nil>
	// servicetraceroute: Selection.Policies["203.0.113.0/24"]: Params.Probes: -1 is not within 0 to 20
}
