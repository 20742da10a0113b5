// Package node is what the processes of a lab and their controller agree on: a
// lab node is a child process in a network namespace of its own, and a role is
// something it can be asked to do there.
package node

import (
	"context"
	"encoding/json"
)

// Func is a role. It runs in the node's process, in the node's network
// namespace, from a goroutine of its own; ctx ends when the caller gives up or
// the lab closes. What must go on after it returned (a server) it starts under
// the context that Background gives. The result is sent back as JSON.
type Func func(ctx context.Context, arg json.RawMessage) (any, error)

// Roles are a node's abilities by name ("peer/https").
type Roles map[string]Func

// Caller asks a node to play a role and waits for its result, which is decoded
// into result unless that is nil.
type Caller interface {
	Call(ctx context.Context, role string, arg, result any) error
}

type backgroundKey struct{}

// WithBackground returns a context for a role's call whose Background is life:
// the context that ends with the node.
func WithBackground(ctx, life context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, life)
}

// Background returns the context that ends with the node, for what a role leaves
// running. It is ctx itself when the role is called without a node, as in a test.
func Background(ctx context.Context) context.Context {
	if life, ok := ctx.Value(backgroundKey{}).(context.Context); ok {
		return life
	}
	return ctx
}
