//go:build cgo

package privilege

const cgo = true
