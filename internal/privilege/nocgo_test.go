//go:build !cgo

package privilege

const cgo = false
