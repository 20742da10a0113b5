//go:build linux

package whole

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/trace"
)

// envTalk makes this program a client: address, how long its connection lives, and
// how often it starts itself anew to do the same.
const envTalk = "SERVICE_TRACEROUTE_TEST_TALK"

// lively is how long a connection of a test lives: on a busy machine a first hop
// takes a while.
const lively = "1s"

func talk() {
	words := strings.Fields(os.Getenv(envTalk))
	if len(words) != 3 {
		return
	}
	if deeper, _ := strconv.Atoi(words[2]); deeper > 0 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", envTalk, words[0], words[1], deeper-1))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	life, _ := time.ParseDuration(words[1])
	c, err := net.Dial("tcp", words[0])
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(os.Getpid(), c.LocalAddr().(*net.TCPAddr).Port)
	time.Sleep(life)
	c.Close()
	os.Exit(0)
}

// talks runs argv with such clients in the client's namespace.
func (f *field) talks(t *testing.T, deeper int, argv ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var out, errs bytes.Buffer
	start := time.Now()
	status, err := f.Node("client").Run(ctx, lab.Program{Argv: argv, Stdout: &out, Stderr: &errs, Env: []string{
		fmt.Sprintf("%s=%s %v %d", envTalk, net.JoinHostPort(f.server.String(), "443"), lively, deeper),
	}})
	if err != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	return result{status, out.String(), errs.String(), time.Since(start)}
}

// parsed are the traces in a file of records.
func parsed(t testing.TB, name string) []*trace.Trace { return recorded[*trace.Trace](t, name) }

// recorded are a file's records of one kind.
func recorded[E trace.Event](t testing.TB, name string) (all []E) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		ev, err := trace.Unmarshal(line)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e, ok := ev.(E); ok {
			all = append(all, e)
		}
	}
	return all
}

func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// TestRun shares one network among its parts.
func TestRun(t *testing.T) {
	f := newField(t)
	before := remains(t, f.bin)
	t.Run("text", f.runText)
	t.Run("children", f.runChildren)
	t.Run("two at once, and others", f.runTwo)
	t.Run("descendants", f.runWithoutGroup)
	t.Run("statuses", f.runStatuses)
	t.Run("bytes", f.runBytes)
	t.Run("signals", f.runSignals)
	t.Run("waits end", f.waitsEnd)
	t.Run("ignored signals", f.runIgnored)
	t.Run("daemons", f.runDaemons)
	t.Run("users", f.runUsers)
	t.Run("users, traced", f.runUserTraced)
	t.Run("users, named", f.traceNames)
	t.Run("file capability", f.runFileCapability)
	t.Run("job control", f.runJobControl)
	nothingLeft(t, "run", f.bin, before)
}

// The command's output is its own, ours comes afterwards.
func (f *field) runText(t *testing.T) {
	r := f.talks(t, 0, f.bin, "run", "--", self(t))
	var pid, port int
	if n, err := fmt.Sscanf(r.stdout, "%d %d\n", &pid, &port); n != 2 || err != nil || strings.Count(r.stdout, "\n") != 1 {
		t.Errorf("stdout %q", r.stdout)
	}
	for _, want := range []string{":" + strconv.Itoa(port) + " -> ", "chosen by run " + filepath.Base(self(t)), "(" + strconv.Itoa(pid) + ")", "\n  1  "} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("stderr lacks %q:\n%s", want, r.stderr)
		}
	}
	if r.status != 0 {
		t.Errorf("status %d", r.status)
	}
}

// Flows of a grandchild are traced, and named after it.
func (f *field) runChildren(t *testing.T) {
	file := filepath.Join(t.TempDir(), "records")
	r := f.talks(t, 2, f.bin, "run", "--output", "json", "-o", file, "--", self(t))
	traces := parsed(t, file)
	if r.status != 0 || len(traces) != 1 {
		t.Fatalf("status %d, %d traces\n%s", r.status, len(traces), r.stderr)
	}
	var pid, port int
	_, _ = fmt.Sscanf(r.stdout, "%d %d", &pid, &port)
	if tr := traces[0]; tr.Process == nil || tr.Process.PID != pid || int(tr.Flow.Src.Port()) != port || tr.Service.By != trace.ByRun {
		t.Errorf("%+v %+v, want %d and port %d", tr.Process, tr.Flow, pid, port)
	}
}

// Two runs at once, and a third client without any, to the same server: each run
// takes its own flow and nothing else.
func (f *field) runTwo(t *testing.T) {
	dir := t.TempDir()
	results := make(chan [2]string, 3)
	for i := range 3 {
		go func() {
			file := filepath.Join(dir, strconv.Itoa(i))
			argv := []string{f.bin, "run", "--output", "json", "-o", file, "--", self(t)}
			if i == 2 {
				argv = argv[len(argv)-1:]
			}
			results <- [2]string{file, f.talks(t, i%2, argv...).stdout}
		}()
	}
	for range 3 {
		r := <-results
		if strings.HasSuffix(r[0], "2") {
			continue
		}
		var pid, port int
		_, _ = fmt.Sscanf(r[1], "%d %d", &pid, &port)
		traces := parsed(t, r[0])
		if len(traces) != 1 || int(traces[0].Flow.Src.Port()) != port || traces[0].Process.PID != pid {
			t.Errorf("%d traces, want one of port %d", len(traces), port)
		}
	}
}

// Where no control group can be made, descendants tell.
func (f *field) runWithoutGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "records")
	script := `for d in $(awk '$3 == "cgroup2" {print $2}' /proc/mounts); do mount -t tmpfs none $d; done; exec "$@"`
	r := f.talks(t, 1, "unshare", "-m", "sh", "-c", script, "sh", f.bin, "run", "--output", "json", "-o", file, "--", self(t))
	traces := parsed(t, file)
	var pid, port int
	_, _ = fmt.Sscanf(r.stdout, "%d %d", &pid, &port)
	if r.status != 0 || len(traces) != 1 || traces[0].Process.PID != pid || int(traces[0].Flow.Src.Port()) != port {
		t.Errorf("status %d, %d traces\n%s", r.status, len(traces), r.stderr)
	}
}

func (f *field) runStatuses(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("echo plain; exit 5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		argv []string
		want int
		says string
	}{
		{[]string{"true"}, 0, "no flow of true was seen"},
		{[]string{"sh", "-c", "exit 42"}, 42, ""},
		{[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"no-such-command"}, 127, "error: no-such-command: command not found\nhint: "},
		{[]string{"/no/such/command"}, 127, "error: /no/such/command: no such file or directory\nhint: "},
		{[]string{"/etc/passwd"}, 126, "error: /etc/passwd: permission denied\nhint: "},
		{[]string{dir}, 126, "hint: "},
		{[]string{plain}, 5, ""}, // as a shell does without "#!"
		{nil, 2, "error: no command to run\nhint: "},
	} {
		r := f.run(t, nil, append([]string{f.bin, "run", "--"}, test.argv...)...)
		if r.status != test.want || !strings.Contains(r.stderr, test.says) {
			t.Errorf("%q: status %d, want %d; stderr %q", test.argv, r.status, test.want, r.stderr)
		}
	}
}

// Standard input and output are the command's, byte for byte.
func (f *field) runBytes(t *testing.T) {
	in := make([]byte, 3<<20)
	for i := range in {
		in[i] = byte(i * 7 >> 3)
	}
	var out, errs bytes.Buffer
	status, err := f.Node("client").Run(t.Context(), lab.Program{
		Argv: []string{f.bin, "run", "--", "sh", "-c", "cat; echo its own >&2"}, Stdin: bytes.NewReader(in), Stdout: &out, Stderr: &errs,
	})
	if err != nil || status != 0 || !bytes.Equal(out.Bytes(), in) {
		t.Errorf("%v, status %d, %d of %d bytes", err, status, out.Len(), len(in))
	}
	if !strings.HasPrefix(errs.String(), "its own\n") {
		t.Errorf("stderr %q", errs.String())
	}
}

// Ctrl-C is the command's business; SIGTERM is passed on, a second one ends us.
func (f *field) runSignals(t *testing.T) {
	for _, test := range []struct {
		script string
		sig    syscall.Signal
		group  bool // as a terminal does
		want   int
	}{
		{"trap 'exit 9' INT; echo ready; while :; do sleep .05; done", syscall.SIGINT, true, 9},
		{"trap 'exit 10' TERM; echo ready; while :; do sleep .05; done", syscall.SIGTERM, false, 10},
		{"trap 'exit 11' HUP; echo ready; while :; do sleep .05; done", syscall.SIGHUP, false, 11},
		{"echo ready; exec sleep 100", syscall.SIGTERM, false, 143},
		{"echo ready; exec sleep 100", syscall.SIGQUIT, true, 131},
		// Both signals of one wish, as timeout(1) sends them, are one.
		{"trap 'sleep .3; exit 12' TERM; echo ready; while :; do sleep .05; done", syscall.SIGTERM, true, 12},
	} {
		promptly(t, test.script, func() time.Duration {
			p := start(t, f.Node("client").Do, nil, f.bin, "run", "--", "sh", "-c", test.script)
			p.stdout.await(t, "ready")
			status, took := p.signal(t, test.sig, test.group)
			if status != test.want {
				t.Errorf("%q: status %d, want %d; stderr %q", test.script, status, test.want, p.stderr.String())
			}
			return took
		})
	}
	// The command does not obey; the second signal ends us alone.
	promptly(t, "two signals", func() time.Duration {
		p := start(t, f.Node("client").Do, func(cmd *exec.Cmd) { cmd.WaitDelay = 10 * time.Millisecond },
			f.bin, "run", "--", "sh", "-c", `trap "echo heard" TERM; echo ready; while :; do sleep .05; done`)
		p.stdout.await(t, "ready")
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		p.stdout.await(t, "heard")
		time.Sleep(300 * time.Millisecond) // less would be the same wish
		status, took := p.signal(t, syscall.SIGTERM, false)
		if status != 143 {
			t.Errorf("two signals: status %d; stderr %q", status, p.stderr.String())
		}
		return took
	})
}

// Ctrl-C ends what waits for somebody: for words, or for who writes to a pipe.
func (f *field) waitsEnd(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"services", "import", "-"}, {"replay", fifo}} {
		promptly(t, argv[0], func() time.Duration {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			defer r.Close()
			p := start(t, f.Node("client").Do, func(cmd *exec.Cmd) { cmd.Stdin = r }, append([]string{f.bin}, argv...)...)
			time.Sleep(300 * time.Millisecond) // until it waits; if it does not yet, it ends all the same
			status, took := p.signal(t, syscall.SIGINT, false)
			if status == 0 {
				t.Errorf("%v: status %d; %s", argv, status, p.stderr.String())
			}
			return took
		})
	}
}

// What was ignored when we were started the command finds ignored; other commands
// take Ctrl-C all the same, as tcpdump does.
func (f *field) runIgnored(t *testing.T) {
	const hup, interrupt, quit = 1 << (syscall.SIGHUP - 1), 1 << (syscall.SIGINT - 1), 1 << (syscall.SIGQUIT - 1)
	for before, want := range map[string]uint64{
		"":               0,
		`trap "" INT;`:   interrupt | quit, // a shell's background job has both
		`trap "" HUP;`:   hup,              // nohup(1)
		`trap "" 1 2 3;`: hup | interrupt | quit,
	} {
		r := f.run(t, nil, "sh", "-c", before+` exec "$0" run -- cat /proc/self/status`, f.bin)
		got, err := strconv.ParseUint(inCommand(r.stdout, "SigIgn"), 16, 64)
		if mask := uint64(hup | interrupt | quit); err != nil || r.status != 0 || got&mask != want {
			t.Errorf("%q: %#x, want %#x; status %d, %v", before, got, want, r.status, err)
		}
	}
	// In the background of a script, Ctrl-C at the terminal reaches neither.
	p := start(t, f.Node("client").Do, nil, "sh", "-c", `"$0" run -- sh -c 'echo ready; read x </dev/null; sleep 1; exit 4' & wait $!`, f.bin)
	p.stdout.await(t, "ready")
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	p.status(t) // the shell's own, which Ctrl-C ended
	p.stderr.await(t, "no flow of sh was seen")
	promptly(t, "trace in the background", func() time.Duration {
		p := start(t, f.Node("client").Do, nil, "sh", "-c", `trap "" INT; exec "$0" trace --host 192.0.2.1`, f.bin)
		p.stderr.await(t, "watching")
		status, took := p.signal(t, syscall.SIGINT, false)
		if status != 0 {
			t.Errorf("trace in the background: status %d; stderr %q", status, p.stderr.String())
		}
		return took
	})
}

// What the command leaves behind goes on, and nothing of ours stays.
func (f *field) runDaemons(t *testing.T) {
	before := remains(t, f.bin)
	file := filepath.Join(t.TempDir(), "pid")
	// It is not waited for, or the status would come when everybody's patience is over.
	r := f.run(t, nil, f.bin, "run", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >"+file+"; exit 3")
	if r.status != 3 {
		t.Errorf("status %d after %v", r.status, r.took)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the daemon is gone: %v", err)
	}
	nothingLeft(t, "a daemon", f.bin, before)
}
