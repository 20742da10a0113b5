//go:build linux

package whole

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/trace"
)

// whoAmI is a command that tells who it is.
const whoAmI = `echo "user $(id -u) $(id -g)"; echo "groups $(id -G)"; echo "home $HOME"; echo "sudo $SUDO_UID"; cat /proc/self/status`

// inCommand are the values of one kind that a command saw.
func inCommand(stdout, key string) string {
	m := regexp.MustCompile(`(?m)^` + key + `:?\s(.*)$`).FindStringSubmatch(stdout)
	if m == nil {
		return "none"
	}
	return strings.Join(strings.Fields(m[1]), " ")
}

// Under sudo, and with --user, the command is that user and has no capability; its
// own sudo would work.
func (f *field) runUsers(t *testing.T) {
	if b, err := os.ReadFile("/proc/self/uid_map"); err != nil || !strings.Contains(string(b), "4294967295") {
		nstest.Skip(t, "needs root outside user namespaces, to become other users")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	sudo := []string{"SUDO_UID=12345", "SUDO_GID=12346", "SUDO_USER=somebody"}
	for _, test := range []struct {
		name  string
		env   []string
		flags []string
		want  map[string]string
	}{
		{"sudo", sudo, nil, map[string]string{"user": "12345 12346", "groups": "12346", "sudo": ""}},
		{"--user", nil, []string{"--user", "nobody"}, map[string]string{
			"user": nobody.Uid + " " + nobody.Gid, "groups": nobody.Gid, "home": nobody.HomeDir,
		}},
		{"--user, by number, and sudo", sudo, []string{"--user", nobody.Uid}, map[string]string{"user": nobody.Uid + " " + nobody.Gid, "sudo": ""}},
	} {
		argv := append(append([]string{f.bin, "run"}, test.flags...), "--", "sh", "-c", whoAmI)
		stdout, stderr, status, err := f.Node("client").Exec(t.Context(), argv, test.env, nil)
		if err != nil || status != 0 {
			t.Errorf("%s: status %d, %v, %s", test.name, status, err, stderr)
			continue
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			test.want[set] = "0000000000000000"
		}
		test.want["NoNewPrivs"] = "0"
		for key, want := range test.want {
			if got := inCommand(string(stdout), key); got != want {
				t.Errorf("%s: %s %q, want %q", test.name, key, got, want)
			}
		}
	}
	// A signal reaches the command also where it is somebody else's.
	for _, env := range [][]string{nil, sudo} {
		p := start(t, f.Node("client").Do, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, env...) },
			f.bin, "run", "--user", "nobody", "--", "sh", "-c", "echo ready; exec sleep 100")
		p.stdout.await(t, "ready")
		if status, _ := p.signal(t, syscall.SIGTERM, false); status != 143 {
			t.Errorf("%v: status %d; %s", env, status, p.stderr.String())
		}
	}
	// Root alone starts root's commands, but hands nothing on by itself.
	stdout, _, _, err := f.Node("client").Exec(t.Context(), []string{f.bin, "run", "--", "sh", "-c", whoAmI}, []string{"SUDO_UID=", "SUDO_GID="}, nil)
	if err != nil || inCommand(string(stdout), "user") != "0 0" || inCommand(string(stdout), "CapInh") != "0000000000000000" ||
		inCommand(string(stdout), "CapAmb") != "0000000000000000" {
		t.Errorf("root: %v\n%s", err, stdout)
	}
}

// othersExist skips a test that needs other users where this one is alone: in a user
// namespace with one number only.
func othersExist(t *testing.T) {
	t.Helper()
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	var inside, outside, count uint64
	if _, err := fmt.Sscan(string(ids), &inside, &outside, &count); err == nil && count <= 1 {
		nstest.Skip(t, "needs other users, and this user namespace has none")
	}
}

// The flows of a command that is somebody else are traced, and named after it.
func (f *field) runUserTraced(t *testing.T) {
	othersExist(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	dir := open(t)
	client := filepath.Join(dir, "client")
	install(t, self(t), client, nil)
	file := filepath.Join(t.TempDir(), "records")
	for name, how := range map[string][2][]string{
		"--user": {{"--user", "nobody"}, nil}, "sudo": {nil, {"SUDO_UID=" + nobody.Uid, "SUDO_GID=" + nobody.Gid}},
	} {
		argv := append(append([]string{f.bin, "run", "--output", "json", "-o", file}, how[0]...), "--", client)
		env := append([]string{fmt.Sprintf("%s=%v:443 %s 0", envTalk, f.server, lively)}, how[1]...)
		stdout, stderr, status, err := f.Node("client").Exec(t.Context(), argv, env, nil)
		traces := parsed(t, file)
		var pid, port int
		_, _ = fmt.Sscanf(string(stdout), "%d %d", &pid, &port)
		if err != nil || status != 0 || len(traces) != 1 || traces[0].Process.PID != pid || int(traces[0].Flow.Src.Port()) != port {
			t.Errorf("%s: %v, status %d, %d traces, %s", name, err, status, len(traces), stderr)
		}
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}
}

// A plain root's records name everybody's processes, under sudo those of who called it.
func (f *field) traceNames(t *testing.T) {
	othersExist(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(nobody.Uid)
	gid, _ := strconv.Atoi(nobody.Gid)
	client := filepath.Join(open(t), "client")
	install(t, self(t), client, nil)
	for name, test := range map[string]struct {
		env  []string
		root bool // whether root's process is named
	}{
		"root": {[]string{"SUDO_UID=", "SUDO_GID="}, true},
		"sudo": {[]string{"SUDO_UID=" + nobody.Uid, "SUDO_GID=" + nobody.Gid}, false},
	} {
		tracing := start(t, f.Node("client").Do, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, test.env...) },
			f.bin, "trace", "--host", f.server.String(), "--output", "json")
		tracing.stderr.await(t, "watching")
		talks := fmt.Sprintf("%s=%v:443 %s 0", envTalk, f.server, lively)
		theirs := start(t, f.Node("client").Do, func(cmd *exec.Cmd) {
			cmd.Env = append(cmd.Env, talks)
			cmd.Dir = "/"
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}, client)
		roots := start(t, f.Node("client").Do, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, talks) }, client)
		want := map[uint16]int{}
		for p, named := range map[*program]bool{theirs: true, roots: test.root} {
			var pid int
			var port uint16
			if status := p.status(t); status != 0 {
				t.Errorf("%s: status %d, %s", name, status, p.stderr.String())
			}
			_, _ = fmt.Sscanf(p.stdout.String(), "%d %d", &pid, &port)
			if !named {
				pid = 0
			}
			want[port] = pid
		}
		if status, _ := tracing.signal(t, syscall.SIGINT, false); status != 0 {
			t.Errorf("%s: status %d, %s", name, status, tracing.stderr.String())
		}
		for line := range strings.Lines(tracing.stdout.String()) {
			ev, err := trace.Unmarshal([]byte(line))
			if err != nil {
				t.Fatal(err)
			}
			tr, ok := ev.(*trace.Trace)
			if !ok {
				continue
			}
			pid, known := want[tr.Flow.Src.Port()]
			delete(want, tr.Flow.Src.Port())
			if got := tr.Process; !known || (got != nil) != (pid != 0) || got != nil && (got.PID != pid || got.Name != "client") {
				t.Errorf("%s: %+v, want %d: %s", name, got, pid, line)
			}
		}
		if len(want) != 0 {
			t.Errorf("%s: no trace of %v\n%s", name, want, tracing.stdout.String())
		}
	}
}

// A command that got its privilege from the file (setcap) keeps it to itself.
func (f *field) runFileCapability(t *testing.T) {
	othersExist(t)
	bin := filepath.Join(open(t), "service-traceroute")
	// struct vfs_cap_data, revision 2, effective (capabilities(7), linux/capability.h)
	const netRaw = 1 << 13
	install(t, f.bin, bin, []byte{1, 0, 0, 2, netRaw & 0xff, netRaw >> 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	p := start(t, f.Node("client").Do, func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 12345, Gid: 12345}
	}, bin, "run", "--", "sh", "-c", whoAmI)
	if status := p.status(t); status != 0 || inCommand(p.stdout.String(), "user") != "12345 12345" {
		t.Fatalf("status %d\n%s%s", status, p.stdout.String(), p.stderr.String())
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		if got := inCommand(p.stdout.String(), set); got != "0000000000000000" {
			t.Errorf("%s %s", set, got)
		}
	}
}

// open is a directory that everybody may enter.
func open(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// install copies a program, with capabilities.
func install(t *testing.T, from, to string, capability []byte) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if capability != nil {
		if err := unix.Setxattr(to, "security.capability", capability, 0); err != nil {
			nstest.Skip(t, "no capabilities of files here: %v", err)
		}
	}
}

// Ctrl-Z stops the command, and us with it, so that the shell has its terminal back;
// fg lets both go on; Ctrl-C is the command's.
func (f *field) runJobControl(t *testing.T) {
	w := newTerminal(t, f.Node("client").Do)
	w.press(t, fmt.Sprintf("%s run -- sh -c '%s'\n", f.bin, `echo pid-$$-; while read x; do echo "got<$x>"; done; exit 7`))
	command := w.number(t, "pid")
	ours := processStatus(t, command).parent
	w.press(t, "one\n")
	w.shown.await(t, "got<one>")

	w.press(t, "\x1a")
	eventually(t, "both to stop", func() bool { return processStatus(t, command).state == "T" && processStatus(t, ours).state == "T" })
	w.press(t, "echo shell-$((40+2))\n")
	w.shown.await(t, "shell-42")
	if strings.Contains(w.shown.String(), "got<echo") {
		t.Error("the stopped command reads")
	}

	w.press(t, "fg\n")
	eventually(t, "both to go on", func() bool { return processStatus(t, command).state != "T" && processStatus(t, ours).state != "T" })
	w.press(t, "two\n")
	w.shown.await(t, "got<two>")
	w.press(t, "\x04")
	eventually(t, "the command's end", func() bool { return processStatus(t, ours).state == "" })
	w.press(t, "echo status-$?-\n")
	w.shown.await(t, "status-7-")

	// Ctrl-C reaches the command from the terminal; its status is ours.
	w.press(t, fmt.Sprintf("%s run -- sh -c '%s'\n", f.bin, `trap "exit 9" INT; echo again-$$-; while :; do read x; done`))
	ours = processStatus(t, w.number(t, "again")).parent
	w.press(t, "\x03")
	eventually(t, "the end after Ctrl-C", func() bool { return processStatus(t, ours).state == "" })
	w.press(t, "echo status-$?-\n")
	w.shown.await(t, "status-9-")
	w.press(t, "exit\n")
	w.status(t)
	if t.Failed() {
		t.Log(w.shown.String())
	}
}

// stat is what proc_pid_stat(5) tells; empty when there is no such process.
type stat struct {
	state  string
	parent int
}

func processStatus(t *testing.T, pid int) (s stat) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s
	}
	_, err = fmt.Sscanf(string(b[strings.LastIndexByte(string(b), ')')+1:]), " %s %d", &s.state, &s.parent)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
