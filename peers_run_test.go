//go:build linux && peers

package servicetraceroute_test

import (
	"fmt"
	"testing"
	"time"

	"servicetraceroute/internal/lab/labtest"
)

// TestPeersRun is TestRunShortFlows with curl. A shell tells its process number and becomes
// curl, which has the same then.
func TestPeersRun(t *testing.T) {
	labtest.Require(t)
	bin := command(t)
	l := runLab(t)
	count := 20
	if full() {
		count = 1000
	}
	url := "https://" + l.Node("server").Addr(false).String() + "/bytes/2000?after=3ms"
	curl := []string{"sh", "-c", `echo $$; exec curl -sS -k -o /dev/null -w "%{local_port} %{http_code} %{time_total}" ` + url}
	a := newAttributions()
	for range count {
		a.one(t, l, bin, curl, nil, func(out []byte) (fetched, error) {
			was := fetched{Name: "curl"}
			var seconds float64
			_, err := fmt.Sscan(string(out), &was.PID, &was.Port, &was.Status, &seconds)
			was.Life = time.Duration(seconds * float64(time.Second))
			return was, err
		})
		if t.Failed() {
			return
		}
	}
	a.report(t, "run-curl", "curl makes one HTTPS request over three routers and ends")
}
