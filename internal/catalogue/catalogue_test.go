package catalogue

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// parse reads what a test takes for right.
func parse(t *testing.T, text string) *Catalogue {
	t.Helper()
	c, err := Parse("test.yaml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// merge merges what a test takes for right.
func merge(t *testing.T, c *Catalogue, over ...*Catalogue) *Catalogue {
	t.Helper()
	merged, err := c.Merge(over...)
	if err != nil {
		t.Fatal(err)
	}
	return merged
}

// written is a catalogue as text, to compare.
func written(t testing.TB, c *Catalogue) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteYAML(&b, c.All()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != text {
		t.Errorf("%s differs (go test -update writes it):\n%s", name, text)
	}
}

// shared are domains that two services of the catalogue in the binary have in common:
// the first is the narrower one, or owns the name. What is not listed here is a
// mistake.
var shared = map[string]string{
	"amazon-video: avodassets-a.akamaihd.net":       "akamai: akamaihd.net",
	"aws-s3: s3.amazonaws.com":                      "aws: amazonaws.com",
	"epic-games: epicgames-download1.akamaized.net": "akamai: akamaized.net",
	"gmail: mail.google.com":                        "google: google.com",
	"google-drive: docs.google.com":                 "google: google.com",
	"google-drive: drive.google.com":                "google: google.com",
	"google-drive: drive.usercontent.google.com":    "google: google.com",
	"google-meet: meet.google.com":                  "google: google.com",
	"google-meet: meetings.googleapis.com":          "google: googleapis.com",
	"google-play: android.clients.google.com":       "google: google.com",
	"google-play: play-fe.googleapis.com":           "google: googleapis.com",
	"google-play: play.google.com":                  "google: google.com",
	"google-play: play.googleapis.com":              "google: googleapis.com",
	"spotify: spotify-heads.map.fastlylb.net":       "fastly: fastlylb.net",
	"spotify: spotify.edgekey.net":                  "akamai: edgekey.net",
	"spotify: spotify.map.fastly.net":               "fastly: fastly.net",
	"steam: steamcdn-a.akamaihd.net":                "akamai: akamaihd.net",
	"steam: steamcommunity-a.akamaihd.net":          "akamai: akamaihd.net",
	"steam: steamstore-a.akamaihd.net":              "akamai: akamaihd.net",
	"teams: teams.cloud.microsoft":                  "microsoft-365: cloud.microsoft",
	"youtube: youtube.googleapis.com":               "google: googleapis.com",
	"youtube: youtubei.googleapis.com":              "google: googleapis.com",
	"youtube: yt3.ggpht.com":                        "google: ggpht.com",
}

// No domain is in two services, nor below one of another's, unless that is meant.
func TestBuiltinDomains(t *testing.T) {
	owner := map[string]string{}
	for _, s := range Builtin().All() {
		for _, d := range s.Domains {
			if other := owner[d]; other != "" {
				t.Errorf("%s is in %s and in %s", d, other, s.Name)
			}
			owner[d] = s.Name
		}
	}
	met := map[string]bool{}
	for d, name := range owner {
		for above := d; strings.Contains(above, "."); {
			_, above, _ = strings.Cut(above, ".")
			key := name + ": " + d
			if other := owner[above]; other == name {
				t.Errorf("%s: %s is below %s already", name, d, above)
			} else if met[key] = other != "" && shared[key] == other+": "+above; other != "" && !met[key] {
				t.Errorf("%q is below %q", key, other+": "+above)
			} else if met[key] {
				break
			}
		}
	}
	for key := range shared {
		if !met[key] {
			t.Errorf("%q is listed as shared, and is not", key)
		}
	}
}

// The catalogue in the binary has what is promised, in order, and is sound on its own.
func TestBuiltin(t *testing.T) {
	all := Builtin().All()
	if len(all) < 45 {
		t.Errorf("%d services", len(all))
	}
	for _, name := range strings.Fields(`youtube netflix twitch facebook spotify amazon-video hulu cloudfront sling-tv
		playstation-vue hbo directv zoom teams discord whatsapp instagram tiktok twitter google-meet gmail google-drive
		dropbox github gitlab docker-hub npm pypi debian ubuntu cloudflare akamai fastly steam epic-games xbox-live
		playstation-network nintendo roblox slack webex signal telegram skype linkedin reddit wikipedia icloud apple-tv
		disney-plus paramount-plus peacock deezer soundcloud vimeo dailymotion microsoft-365 onedrive azure aws-s3 salesforce`) {
		if s, ok := Builtin().Get(name); !ok || s.Title == "" {
			t.Errorf("%s: %+v", name, s)
		}
	}
	for _, s := range all {
		if len(s.Prefixes) > 0 && s.Source == "" {
			t.Errorf("%s: prefixes, and no word where they are documented", s.Name)
		}
		if s.Replace || s.Title == "" {
			t.Errorf("%s: replaces: %v, title %q", s.Name, s.Replace, s.Title)
		}
	}
	if again := merge(t, &Catalogue{}, Builtin()); written(t, again) != written(t, Builtin()) {
		t.Error("merged with nothing it is another one")
	}
	var names []string
	for line := range strings.Lines(string(builtin)) {
		if name, ok := strings.CutPrefix(line, "  - name: "); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	if !slices.IsSorted(names) || len(names) != len(all) {
		t.Errorf("services.yaml is not sorted by name: %v", names)
	}
}

func TestGet(t *testing.T) {
	for name, want := range map[string]bool{"netflix": true, "Netflix": true, "netfli": false, "netflixx": false, "": false} {
		if s, ok := Builtin().Get(name); ok != want || ok && s.Name != "netflix" {
			t.Errorf("%q: %v, %v", name, s.Name, ok)
		}
	}
	if _, ok := new(Catalogue).Get("netflix"); ok {
		t.Error("an empty catalogue has netflix")
	}
}

// Of two catalogues the later one adds, and its words win; with replace it takes the
// other's place.
func TestMerge(t *testing.T) {
	base := `services: [{name: a, title: A, domains: [a.example, b.example], ports: 443, source: here}, {name: z, domains: z.example}]`
	for name, test := range map[string]struct{ over, want string }{
		"nothing": {``, `{name: a, title: A, domains: [a.example, b.example], ports: 443, source: here}`},
		"adds": {
			`{name: a, domains: [c.example, a.example], regexes: x, prefixes: 192.0.2.0/24, ports: 80, proto: udp, exclude: [x.example, 192.0.2.1]}`,
			`{name: a, title: A, domains: [a.example, b.example, c.example], regexes: x, prefixes: 192.0.2.0/24, ports: [80, 443],
			  proto: udp, exclude: [x.example, 192.0.2.1], source: here}`,
		},
		"words win":       {`{name: a, title: AA, source: there}`, `{name: a, title: AA, domains: [a.example, b.example], ports: 443, source: there}`},
		"replaces":        {`{name: a, domains: c.example, replace: true}`, `{name: a, domains: c.example, replace: true}`},
		"a new one":       {`{name: b, domains: c.example}`, `{name: a, title: A, domains: [a.example, b.example], ports: 443, source: here}, {name: b, domains: c.example}`},
		"only an exclude": {`{name: a, exclude: a.a.example}`, `{name: a, title: A, domains: [a.example, b.example], ports: 443, exclude: a.a.example, source: here}`},
	} {
		c := parse(t, base)
		got := merge(t, c, parse(t, `services: [`+test.over+`]`))
		want := parse(t, `services: [`+test.want+`, {name: z, domains: z.example}]`)
		if g, w := written(t, got), written(t, want); g != w {
			t.Errorf("%s: got\n%swant\n%s", name, g, w)
		}
		if written(t, c) != written(t, parse(t, base)) {
			t.Errorf("%s: the one below was written to", name)
		}
	}
}

// It does not matter in which steps catalogues are merged.
func TestMergeInSteps(t *testing.T) {
	files := []*Catalogue{
		parse(t, `services: [{name: a, domains: a.example}]`), parse(t, `services: [{name: a, domains: b.example, title: B}]`),
		parse(t, `services: [{name: a, domains: c.example, title: C, replace: true}]`), parse(t, `services: [{name: a, ports: 5}, {name: b, ports: 6}]`),
	}
	for _, a := range files {
		for _, b := range files {
			for _, c := range files {
				left, right := merge(t, merge(t, a, b), c), merge(t, a, merge(t, b, c))
				if all := merge(t, a, b, c); written(t, left) != written(t, right) || written(t, all) != written(t, left) {
					t.Errorf("(a+b)+c is\n%sa+(b+c) is\n%s", written(t, left), written(t, right))
				}
			}
		}
	}
}

// A name that only the merging shows to be wrong is told with its line.
func TestMergeNothingSelected(t *testing.T) {
	over := parse(t, "services:\n  - name: netflx\n    exclude: 192.0.2.1\n  - name: netflix\n    exclude: 192.0.2.1\n  - {name: qqqqq, proto: udp}\n")
	_, err := Builtin().Merge(over)
	const want = "test.yaml:2: service netflx has no domains, regexes, prefixes or ports (did you mean netflix?)\n" +
		"test.yaml:6: service qqqqq has no domains, regexes, prefixes or ports"
	if err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}

func TestSuggest(t *testing.T) {
	for word, want := range map[string]string{
		"netflx": "netflix", "NETFLIX": "netflix", "netf": "netflix", "nteflix": "netflix", "you tube": "youtube", "prime": "amazon-video",
		"x": "twitter xbox-live", "dropbox.com": "dropbox", "xtwitter": "twitter", "google": "google google-drive google-meet",
		"": "", "qqqqq": "", "--": "", "\x00\xff": "", strings.Repeat("netflix", 100): "",
	} {
		if got := strings.Join(Builtin().Suggest(word), " "); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

// A service as its file has it, and as JSON.
func TestWrite(t *testing.T) {
	c := parse(t, `
services:
  - {name: one, title: 'yes', domains: [B.example., "*.a.example"], regexes: ['^(a|b)\.', 'x: y'], prefixes: [192.0.2.7/24, "2001:db8::1"],
     ports: [8801-8810, 443], proto: [udp, tcp], exclude: [c.a.example, 192.0.2.128/25], source: "https://example.com/?a=b&c", replace: true}
  - {name: "null", ports: 1}`)
	golden(t, "services.yaml", written(t, c))
	var b bytes.Buffer
	for _, s := range c.All() {
		text, err := s.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(text, '\n'))
	}
	golden(t, "services.ndjson", b.String())
	if got := written(t, &Catalogue{}); got != "services: []\n" {
		t.Errorf("nothing: %q", got)
	}
}

// What comes of reading the same again is the same.
func TestBuiltinRoundTrip(t *testing.T) {
	text := written(t, Builtin())
	if again := written(t, parse(t, text)); again != text {
		t.Error("the catalogue in the binary changes when it is written and read")
	}
}

// All messages of err, by line.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}
