package node

import (
	"context"
	"encoding/json"
	"fmt"
)

// Role makes a Func of a function with a typed argument and result.
func Role[A, R any](f func(ctx context.Context, arg A) (R, error)) Func {
	return func(ctx context.Context, raw json.RawMessage) (any, error) {
		var arg A
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &arg); err != nil {
				return nil, fmt.Errorf("argument: %w", err)
			}
		}
		return f(ctx, arg)
	}
}

// Call plays a role at c and returns its typed result.
func Call[R any](ctx context.Context, c Caller, role string, arg any) (R, error) {
	var result R
	if err := c.Call(ctx, role, arg, &result); err != nil {
		return result, fmt.Errorf("%s: %w", role, err)
	}
	return result, nil
}
