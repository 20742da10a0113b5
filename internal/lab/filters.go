//go:build linux

package lab

func installFilters(c nodeConfig) error { return nil }
