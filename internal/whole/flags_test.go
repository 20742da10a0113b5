//go:build linux

package whole

import (
	"path/filepath"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// Flags that say when and how far, each with a download or two.
func (f *field) flags(t *testing.T) {
	dir := t.TempDir()
	out, list := filepath.Join(dir, "out.ndjson"), filepath.Join(dir, "list")
	write(t, list, "# what is near\n"+f.Node("r1").Addr(false).String()+"\n"+f.server.String()+"/32 # and the server\n")
	once := func() { f.download(t, 600*time.Millisecond) }
	twice := func() { once(); once() }
	traced := func(tr *trace.Trace) bool { return len(tr.Hops) > 1 && len(tr.Hops[0].Replies) > 0 }
	for name, test := range map[string]struct {
		during func()
		args   []string
		traces int
		right  func(tr *trace.Trace) bool
	}{
		"border-file":  {once, []string{"--border-file", list, "--duration", "2s"}, 1, func(tr *trace.Trace) bool { return tr.Stop == trace.StopBorder && len(tr.Hops) == 1 }},
		"exclude-file": {once, []string{"--exclude-file", list, "--duration", "1500ms"}, 1, func(tr *trace.Trace) bool { return tr.Reason == trace.ReasonExcluded }},
		"idle":         {once, []string{"--idle", "1s"}, 1, traced},
		"stop-new-after": {func() { once(); time.Sleep(time.Second) }, []string{"--stop-new-after", "1s"}, 1,
			traced},
		"per destination": {twice, []string{"--per", "destination", "--duration", "2500ms"}, 1, traced},
		"per port, once":  {twice, []string{"--per", "port", "--every", "once", "--duration", "2500ms"}, 1, traced},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.run(t, test.during, append([]string{f.bin, "trace", "--host", f.server.String(), "--output", "json", "-o", out}, test.args...)...)
			got := parsed(t, out)
			if len(got) != test.traces || r.status != 0 {
				t.Fatalf("%d traces, status %d\n%s", len(got), r.status, r.stderr)
			}
			for _, tr := range got {
				if !test.right(tr) {
					t.Errorf("%v\n%+v\n%s", tr, tr.Hops, readFile(list))
				}
			}
		})
	}
}
