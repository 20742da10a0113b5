package catalogue

import (
	"slices"
	"strings"
	"testing"
)

// conf is in the form of the other tool's file: keys it does not need, null, things
// that are missing, pieces of names.
const conf = `{"Services": [
 {"ServiceType": 0, "Name": "Netflix", "DomainsString": ["netflix.com", ".nflxvideo.net", "NFLXIMG.net."],
  "Prefixes": ["198.38.96.0/19", "2620:10c:7000::/44", "192.0.2.7/24"]},
 {"name": "Sling TV", "DomainsString": ["movetv.com", "slingtv", null, ""], "DomainsRegex": null},
 {"Name": "Amazon", "DomainsRegex": ["avod.*s3.*-.*.akamaihd.net", "amazon.*.llwnd.net"], "DomainsString": null, "Prefixes": []},
 {"Name": "PlayStation Vue", "DomainsString": ["sony+tv"]},
 null,
 {"Name": "Nothing", "Other": {"a": [1, true]}},
 {"Name": "amazon", "Prefixes": ["203.0.113.0/24"]}
]}`

func TestImport(t *testing.T) {
	c, notes, err := Import("input.conf", strings.NewReader(conf))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "imported.yaml", written(t, c))
	want := []string{
		`input.conf:4: sling-tv: "slingtv" is a piece of a name: it became a regex`,
		`input.conf:6: playstation-vue: "sony+tv" is a piece of a name: it became a regex`,
		`input.conf:8: nothing is left out: it has no domains and no prefixes`,
		`input.conf:9: amazon is there twice, both became one`,
	}
	if !slices.Equal(notes, want) {
		t.Errorf("notes:\n%s", strings.Join(notes, "\n"))
	}
	if _, err := Builtin().Merge(c); err != nil {
		t.Error(err)
	}
}

// Names are found among the services that are there.
func TestNameOf(t *testing.T) {
	for text, want := range map[string]string{
		"Netflix": "netflix", "Youtube": "youtube", "AmazonVideo": "amazon-video", "Sling_TV": "sling-tv", "PlayStationVue": "playstation-vue",
		" Some  thing! ": "some-thing", "Ürümqi": "r-mqi", "—": "",
	} {
		if got := nameOf(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestImportErrors(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"many things": {`{"Services": [
  {"Name": "a", "DomainsString": ["a b.c", 5, ["x.y"]],
   "DomainsRegex": ["("],
   "Prefixes": ["192.0.2.0/33", "x"]},
  {"DomainsString": ["a.b"]},
  {"Name": "—", "Prefixes": "192.0.2.0/24"},
  {"Name": 7, "DomainsRegex": {}},
  "x"]}`, []string{
			`2: DomainsString: "a b.c" is not a domain: ' ' is not in names`,
			`2: DomainsString: "5" is no text`,
			`2: DomainsString: a single value is expected`,
			"3: DomainsRegex: \"(\" is not a regular expression: missing closing ): `(`",
			`4: Prefixes: "192.0.2.0/33" is neither an address nor a prefix`,
			`4: Prefixes: "x" is neither an address nor a prefix`,
			`5: a service without a Name`,
			`6: Name: "—" makes no name of letters and digits`,
			`6: Prefixes: a list is expected`,
			`7: DomainsRegex: a list is expected`,
			`8: Services: an object is expected`,
		}},
		"no list":       {"{\n\"Services\": {}}", []string{"2: Services: a list is expected"}},
		"no object":     {"[]", []string{`1: an object is expected: {"Services": […]}`}},
		"nothing":       {"", []string{"1: JSON: it ends too early"}},
		"cut short":     {"{\"Services\": [\n{", []string{"2: JSON: it ends too early"}},
		"no JSON":       {"{\n\n\"Services\": [}", []string{"3: JSON: invalid character '}' looking for beginning of value"}},
		"more than one": {"{} {}", []string{"1: JSON: something follows the first value"}},
		"too deep":      {strings.Repeat("[", 200), []string{"1: JSON: nested more than 100 deep"}},
		"too many":      {`{"Services": [` + strings.Repeat("null,", MaxServices) + `null]}`, []string{"1: 10001 services, more than 10000"}},
	} {
		_, _, err := Import("input.conf", strings.NewReader(test.text))
		for i := range test.want {
			test.want[i] = "input.conf:" + test.want[i]
		}
		if got := lines(err); !slices.Equal(got, test.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
	}
}

// Nothing is no mistake, but is told.
func TestImportNothing(t *testing.T) {
	for text, want := range map[string]int{
		`{}`: 1, `{"Services": null}`: 1, `{"services": []}`: 0, "\uFEFF{\"SERVICES\": [null]}": 0, `{"Services": [{"Name": "a"}]}`: 1,
		`{"Services": [{"Name": "a", "DomainsString": [` + strings.Repeat(`"a",`, 300) + `"a"]}]}`: 101,
	} {
		c, notes, err := Import("f", strings.NewReader(text))
		if err != nil || len(notes) != want || len(c.All()) > 1 {
			t.Errorf("%.50s: %v, %d notes, %v", text, c, len(notes), err)
		}
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte(conf))
	f.Add([]byte(`{"Services": [{"Name": "a", "DomainsString": ["a.", "*.b.c", "\ud800"], "DomainsRegex": ["[[:alpha:]]+$"]}], "x": 1e999}`))
	f.Add([]byte("[[[[{\"a\":"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, _, err := Import("fuzz", strings.NewReader(string(text)))
		survives(t, c, err)
	})
}
