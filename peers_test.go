//go:build linux && peers

package servicetraceroute_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

const nginxConf = `daemon off;
user root;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  limit_rate 600k; # a download of some seconds, whatever curl's own limit lets through at first
  server { listen 443; listen [::]:443; root %[1]s; }
}
`

// TestPeers traces curl's download from nginx across ECMP and a firewall: a
// client and a server that know nothing of this project.
func TestPeers(t *testing.T) {
	dir := t.TempDir()
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	for name, b := range map[string][]byte{"nginx.conf": fmt.Appendf(nil, nginxConf, dir), "file": content} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f := newBareField(t, ladder(2, scenario.ICMPLimit{}), servicetraceroute.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err := f.lab.Node("server").Run(ctx, lab.Program{Argv: []string{"nginx", "-p", dir, "-c", filepath.Join(dir, "nginx.conf")}})
		if err != nil && ctx.Err() == nil {
			t.Errorf("nginx: %v", err)
		}
	}()
	defer func() { cancel(); <-ended }()
	time.Sleep(500 * time.Millisecond) // until nginx listens; curl tries again anyway
	for _, v6 := range []bool{false, true} {
		addr := f.lab.Node("server").Addr(v6).String()
		if v6 {
			addr = "[" + addr + "]"
		}
		stop := f.watch(servicetraceroute.Selection{})
		out := filepath.Join(dir, "got")
		_, stderr, exit, err := f.lab.Node("client").Exec(ctx, []string{
			"curl", "-sS", "--retry", "5", "--retry-connrefused", "-o", out, "http://" + addr + ":443/file",
		}, nil, nil)
		if err != nil || exit != 0 {
			t.Fatalf("curl: %v, status %d: %s", err, exit, stderr)
		}
		got, err := os.ReadFile(out)
		if err != nil || string(got) != string(content) {
			t.Errorf("the download was damaged: %d bytes, %v", len(got), err)
		}
		all := stop()
		v := f.judge(f.truth(), all.traces)
		t.Log(v)
		if len(all.traces) == 0 {
			t.Fatal("no trace")
		}
		for _, tr := range all.traces {
			t.Log(strings.ReplaceAll(describe(tr), "\n", "\n\t"))
			if tr.Stop != trace.StopDestination || !tr.Complete {
				t.Errorf("not complete: %v", tr.Stop)
			}
		}
	}
}
