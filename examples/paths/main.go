// Paths HOST:PORT URL traces a connection of its own, and those of its HTTP client.
package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"os"

	"servicetraceroute"
)

func main() {
	tracer, err := servicetraceroute.New(servicetraceroute.Config{})
	if err != nil {
		log.Fatal(err)
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			log.Println(tracer.TraceConn(ctx, conn)) // before its first byte; "go" would do it beside them
		}
		return conn, err
	}
	_, err = dial(context.Background(), "tcp", os.Args[1])
	_, err2 := (&http.Client{Transport: &http.Transport{DialContext: dial}}).Get(os.Args[2])
	log.Println("errors:", err, err2, tracer.Close())
}
