package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"servicetraceroute/internal/join"
	"servicetraceroute/trace"
)

// Joined writes what the traces of two hosts have in common, as text.
func Joined(w io.Writer, r join.Result) error {
	var b bytes.Buffer
	for _, p := range r.Pairs {
		joined(&b, p)
	}
	for _, u := range r.Unsure {
		fmt.Fprintf(&b, "ambiguous: %v -> %v: %s for %s of the other host:\n", u.There.Flow.Src, u.There.Flow.Dst, u.Match, count(len(u.Flows), "flow"))
		for _, f := range u.Flows {
			fmt.Fprintf(&b, "  %v -> %v\n", f.Src, f.Dst)
		}
	}
	fmt.Fprintf(&b, "%s joined, %d ambiguous; alone: %d of the first file, %d of the second\n",
		count(len(r.Pairs), "flow"), len(r.Unsure), r.AloneThere, r.AloneBack)
	_, err := w.Write(b.Bytes())
	return err
}

func joined(b *bytes.Buffer, p join.Pair) {
	paths := p.Paths()
	fmt.Fprintf(b, "%v %v -> %v (%s)\n", p.There.Flow.Proto, p.There.Flow.Src, p.There.Flow.Dst, p.Match)
	if p.Match != join.Exact {
		fmt.Fprintf(b, "  there it is %v -> %v\n", p.Back.Flow.Src, p.Back.Flow.Dst)
	}
	fmt.Fprintf(b, "%3s  %-15s  %s\n", "", "there", "back")
	for _, s := range paths.Steps {
		line := fmt.Sprintf("%3d  %-15s  %-15s  %s", s.TTL, shownAddr(s.There), shownAddr(s.Back), s.Relation)
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	switch ttls := paths.Differs(); {
	case paths.Asymmetric():
		fmt.Fprintf(b, "asymmetric: %s there, %d back\n", count(paths.HopsThere, "router"), paths.HopsBack)
	case len(ttls) > 0:
		fmt.Fprintf(b, "differs at TTL %s, or routers show other links there\n", strings.Trim(fmt.Sprint(ttls), "[]"))
	case paths.HopsThere > 0 && paths.HopsBack > 0:
		b.WriteString("nothing differs between what answered there and back\n")
	default:
		b.WriteString("one of the ways is not known to its end\n")
	}
	b.WriteByte('\n')
}

func shownAddr(a netip.Addr) string {
	if !a.IsValid() {
		return "*"
	}
	return a.String()
}

// joinJSON is a joined flow as a record of its own.
type joinJSON struct {
	Schema     string      `json:"schema"`
	Type       string      `json:"type"`
	Match      string      `json:"match"` // "exact", "port", "end", "ports" or "ambiguous"
	There      endJSON     `json:"there"`
	Back       *endJSON    `json:"back"`
	Flows      []endJSON   `json:"flows,omitempty"` // those that fit, when it is ambiguous
	Asymmetric bool        `json:"asymmetric"`
	Differs    []int       `json:"differs"` // TTLs of the way there
	Hops       []joinedHop `json:"hops"`
}

type endJSON struct {
	Trace string      `json:"trace,omitempty"`
	Flow  trace.Tuple `json:"flow"`
	// Routers is how many lie on the way, 0 when that is not known.
	Routers int `json:"routers"`
}

type joinedHop struct {
	TTL      int        `json:"ttl"`
	BackTTL  int        `json:"back_ttl"`
	There    netip.Addr `json:"there"`
	Back     netip.Addr `json:"back"`
	Relation string     `json:"relation"` // "same address", "same link", "differs" or ""
}

var matchWords = map[join.Match]string{join.Exact: "exact", join.ByPort: "port", join.ByEnd: "end", join.ByPorts: "ports"}

// JoinedJSON writes it as one JSON object a line.
func JoinedJSON(w io.Writer, r join.Result) error {
	enc := json.NewEncoder(harmless{w})
	for _, p := range r.Pairs {
		paths := p.Paths()
		j := joinJSON{
			Schema: trace.Schema, Type: "join", Match: matchWords[p.Match], Asymmetric: paths.Asymmetric(), Differs: append([]int{}, paths.Differs()...),
			There: endJSON{p.There.ID, p.There.Flow, paths.HopsThere}, Back: &endJSON{p.Back.ID, p.Back.Flow, paths.HopsBack}, Hops: []joinedHop{},
		}
		for _, s := range paths.Steps {
			j.Hops = append(j.Hops, joinedHop{s.TTL, s.BackTTL, s.There, s.Back, s.Relation.String()})
		}
		if err := enc.Encode(j); err != nil {
			return err
		}
	}
	for _, u := range r.Unsure {
		j := joinJSON{Schema: trace.Schema, Type: "join", Match: "ambiguous", There: endJSON{u.There.ID, u.There.Flow, 0}, Differs: []int{}, Hops: []joinedHop{}}
		for _, f := range u.Flows {
			j.Flows = append(j.Flows, endJSON{Flow: f})
		}
		if err := enc.Encode(j); err != nil {
			return err
		}
	}
	return nil
}
