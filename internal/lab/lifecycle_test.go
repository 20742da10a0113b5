//go:build linux

package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/scenario"
)

// envProgram makes this test binary one of programs.
const envProgram = "LAB_TEST_PROGRAM"

var programs = map[string]func(){
	// interfaces prints the names of the interfaces it sees, and its input.
	"interfaces": func() {
		all, _ := net.Interfaces()
		for _, it := range all {
			fmt.Print(it.Name, " ")
		}
		io.Copy(os.Stdout, os.Stdin)
		os.Exit(7)
	},
	"sleep": func() { time.Sleep(time.Hour) },
	// daemon leaves a child in a session of its own behind, as servers do, and
	// prints its pid.
	"daemon": func() {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envProgram+"=sleep")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		cmd.Start()
		fmt.Println(cmd.Process.Pid)
		time.Sleep(time.Hour)
	},
	"controller": controller,
}

// controller opens a lab, runs a daemon in it, and waits to be killed. It prints
// the lab's directory, the pids of the client and of the daemon there, and those
// of all nodes.
func controller() {
	lab.Main()
	if err := lab.Enter(); err != nil {
		panic(err)
	}
	n := line(2)
	n.Links[1].Delay = time.Millisecond
	l, err := lab.Start(context.Background(), n, lab.Options{})
	if err != nil {
		panic(err)
	}
	r, w := io.Pipe()
	go l.Node("client").Run(context.Background(), program("daemon", w))
	daemon, _ := bufio.NewReader(r).ReadString('\n')
	fmt.Println(l.Dir(), l.Node("client").Pid(), strings.TrimSpace(daemon), strings.Trim(fmt.Sprint(l.Pids()), "[]"))
	time.Sleep(time.Hour)
}

func program(name string, stdout io.Writer) lab.Program {
	return lab.Program{Argv: []string{"/proc/self/exe"}, Env: []string{envProgram + "=" + name}, Stdout: stdout}
}

// alive returns those of the processes that exist and are not zombies.
func alive(pids []int) []int {
	var is []int
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			is = append(is, pid)
		}
	}
	return is
}

func waitGone(t *testing.T, pids []int) {
	t.Helper()
	begin := time.Now()
	for len(alive(pids)) > 0 {
		if time.Since(begin) > time.Second {
			t.Fatalf("still there after a second: %v", alive(pids))
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("gone within %v", time.Since(begin))
}

func TestStartTime(t *testing.T) {
	for nodes, limit := range map[int]time.Duration{10: 500 * time.Millisecond, 20: 1500 * time.Millisecond} {
		labtest.Require(t)
		labtest.Exclusive(t)
		begin := time.Now()
		l, err := lab.Start(t.Context(), line(nodes-2), lab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		started := time.Since(begin)
		begin = time.Now()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d nodes: started within %v, closed within %v", nodes, started, time.Since(begin))
		if started > limit {
			t.Errorf("%d nodes took %v, more than %v", nodes, started, limit)
		}
	}
}

func TestClose(t *testing.T) {
	n := line(2)
	n.Links[1].Delay = time.Millisecond
	l := labtest.Start(t, n)
	r, w := io.Pipe()
	ran := make(chan error, 1)
	go func() {
		_, err := l.Node("client").Run(t.Context(), program("daemon", w))
		ran <- err
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	daemon, _ := strconv.Atoi(strings.TrimSpace(line))
	pids := append(l.Pids(), daemon)
	if got := alive(pids); len(got) != len(pids) {
		t.Fatalf("alive: %v of %v", got, pids)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := alive(pids); len(got) > 0 {
		t.Errorf("left over: %v of %v", got, pids)
	}
	if _, err := os.Stat(l.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", l.Dir(), err)
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := l.Node("client").Call(t.Context(), "lab/counters", nil, nil); err == nil {
		t.Error("a closed lab answers")
	}
	if _, _, _, err := l.Node("client").Exec(t.Context(), []string{"/proc/self/exe"}, nil, nil); err == nil {
		t.Error("a closed lab runs programs")
	}
}

func TestKilledController(t *testing.T) {
	labtest.Require(t)
	labtest.Exclusive(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envProgram+"=controller")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(line)
	var pids []int
	for _, f := range fields[1:] {
		pid, _ := strconv.Atoi(f)
		pids = append(pids, pid)
	}
	// The client, the daemon, and the client again with three nodes and a link.
	if got := alive(pids); len(got) != 7 {
		t.Fatalf("alive: %v of %v", got, pids)
	}
	// The client cannot end by itself, nor can what runs there be ended by it.
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	others := slices.DeleteFunc(slices.Clone(pids[2:]), func(pid int) bool { return pid == pids[0] })
	waitGone(t, others)
	if got := alive(pids[:2]); len(got) != 2 {
		t.Errorf("of the stopped node %v are there, want %v", got, pids[:2])
	}
	lab.Sweep(filepath.Dir(fields[0]))
	waitGone(t, pids)
	if _, err := os.Stat(fields[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", fields[0], err)
	}
}

func TestSweepSparesTheLiving(t *testing.T) {
	l := labtest.Start(t, line(1))
	lab.Sweep(filepath.Dir(l.Dir()))
	if got := alive(l.Pids()); len(got) != 3 {
		t.Errorf("alive: %v of %v", got, l.Pids())
	}
}

func TestSweepBelievesNobody(t *testing.T) {
	labtest.Require(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envProgram+"=sleep")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	// A directory of a dead controller that lists a process which is no node.
	dir := filepath.Join(t.TempDir(), lab.RegistryPrefix+"1-1-x")
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
	list := fmt.Sprintf("%d %s\n", cmd.Process.Pid, strings.Fields(string(stat))[21])
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "processes"), []byte(list), 0o600)); err != nil {
		t.Fatal(err)
	}
	lab.Sweep(filepath.Dir(dir))
	if len(alive([]int{cmd.Process.Pid})) == 0 {
		t.Error("a stranger was killed")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestStrayVariable(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SERVICE_TRACEROUTE_LAB_NODE=r1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not a lab's process") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestExec(t *testing.T) {
	l := labtest.Start(t, line(1))
	argv, env := []string{"/proc/self/exe"}, []string{envProgram + "=interfaces"}
	out, _, exit, err := l.Node("r1").Exec(t.Context(), argv, env, strings.NewReader("input"))
	// Which of the two links was made first is not determined.
	if got := string(out); got != "lo eth0 eth1 input" && got != "lo eth1 eth0 input" || exit != 7 || err != nil {
		t.Errorf("%q, status %d, %v", got, exit, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := l.Node("r1").Run(ctx, program("sleep", nil)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v to end the program", took)
	}
}

func TestDo(t *testing.T) {
	l := labtest.Start(t, line(1))
	before, _ := os.Readlink("/proc/thread-self/ns/net")
	var listener net.Listener
	err := l.Node("server").Do(func() (err error) {
		listener, err = net.Listen("tcp", ":81")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if c, err := listener.Accept(); err == nil {
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
		}
	}()
	mustConnect(t, l, "client", "server", 81, false)
	t.Run("a test that ends inside", func(t *testing.T) {
		_ = l.Node("server").Do(func() error { t.SkipNow(); return nil })
		t.Error("it went on")
	})
	if after, _ := os.Readlink("/proc/thread-self/ns/net"); after != before {
		t.Errorf("moved from %s to %s", before, after)
	}
	want := errors.New("mine")
	if err := l.Node("client").Do(func() error { return want }); err != want {
		t.Errorf("got %v", err)
	}
}

func TestCalls(t *testing.T) {
	l := labtest.Start(t, line(1))
	client := l.Node("client")
	if err := client.Call(t.Context(), "no/such", nil, nil); err == nil {
		t.Error("an unknown role was played")
	}
	err := client.Call(t.Context(), "lab/sysctl", struct{ Name string }{"net.ipv4.no_such_thing"}, nil)
	var role *lab.RoleError
	if !errors.Is(err, os.ErrNotExist) || !errors.As(err, &role) {
		t.Errorf("the cause is lost: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	file := filepath.Join(t.TempDir(), "cancelled")
	if err := client.Call(ctx, "test/hang", file, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(file); err == nil {
			break
		}
		if time.Since(begin) > time.Second {
			t.Fatal("the role was not cancelled")
		}
	}
	// A node that dies ends its calls.
	hung := make(chan error, 1)
	go func() { hung <- client.Call(t.Context(), "test/hang", file, nil) }()
	time.Sleep(10 * time.Millisecond)
	if err := syscall.Kill(client.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-hung; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the node was killed: %v", err)
	}
}

func TestSeveralLabs(t *testing.T) {
	for i := range 3 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			l := labtest.Start(t, line(2))
			serve(t, l, "server", 80)
			families(t, func(t *testing.T, ipv6 bool) { mustConnect(t, l, "client", "server", 80, ipv6) })
		})
	}
}

func TestUnknownNode(t *testing.T) {
	l := labtest.Start(t, line(1))
	defer func() {
		if got := fmt.Sprint(recover()); got != `lab: no node "r9" in network "line"` {
			t.Errorf("panic: %s", got)
		}
	}()
	l.Node("r9")
}

func TestBadNetworks(t *testing.T) {
	labtest.Require(t)
	_, err := lab.Start(t.Context(), scenario.Network{Links: links("a-b")}, lab.Options{})
	if err == nil {
		t.Error("a link without nodes was built")
	}
	// What fails half way leaves nothing.
	n := line(1)
	n.Links[1].MTU = 10
	if _, err := lab.Start(t.Context(), n, lab.Options{}); err == nil {
		t.Error("an MTU of 10 was built")
	} else {
		t.Log(err)
	}
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-*", lab.RegistryPrefix, os.Getpid())))
	if len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}
