//go:build race

package domain

func init() { raced = true }
