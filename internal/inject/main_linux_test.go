package inject_test

import (
	"testing"

	"servicetraceroute/internal/lab/labtest"
)

// TestMain lets these tests have namespaces where only users' own are allowed.
func TestMain(m *testing.M) { labtest.Main(m) }
