package main

import (
	"os"
	"runtime"
)

// oneProcessor keeps Go's runtime to one. One goroutine does nearly all there is to do, and with
// more than one processor each packet that wakes it wakes a second thread, which looks for work
// in vain: beside a busy application that costs as much as the tracing does. GOMAXPROCS in the
// environment has the last word.
func oneProcessor() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}
