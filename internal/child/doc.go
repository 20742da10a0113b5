// Package child runs a command on behalf of another one: in a control group of its
// own, as another user, without the caller's capabilities, and as part of the same
// job of the shell, so that the terminal's keys reach it. It knows nothing of
// tracing.
package child
