//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"servicetraceroute/internal/lab/node"
)

// message is what travels between controller and node, as a stream of JSON
// values. A request has a Role, or Cancel for an earlier request's ID; a response
// repeats the ID.
type message struct {
	ID     uint64          `json:"id"`
	Role   string          `json:"role,omitempty"`
	Cancel bool            `json:"cancel,omitempty"`
	Arg    json.RawMessage `json:"arg,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *RoleError      `json:"error,omitempty"`
}

// RoleError is the failure of a role in its node. It matches (errors.Is) the
// system error that caused it there, if one did, and context errors.
type RoleError struct {
	Message  string        `json:"message"`
	Errno    syscall.Errno `json:"errno,omitempty"`
	Canceled bool          `json:"canceled,omitempty"`
	Deadline bool          `json:"deadline,omitempty"`
}

func (e *RoleError) Error() string { return e.Message }

// Unwrap returns the error that survived the way between the processes.
func (e *RoleError) Unwrap() error {
	switch {
	case e.Canceled:
		return context.Canceled
	case e.Deadline:
		return context.DeadlineExceeded
	case e.Errno != 0:
		return e.Errno
	}
	return nil
}

func newRoleError(err error) *RoleError {
	e := &RoleError{
		Message:  err.Error(),
		Canceled: errors.Is(err, context.Canceled),
		Deadline: errors.Is(err, context.DeadlineExceeded),
	}
	errors.As(err, &e.Errno)
	return e
}

// server is the node's side of the control socket.
type server struct {
	roles node.Roles
	dec   *json.Decoder

	writing sync.Mutex // held while a response is written
	enc     *json.Encoder

	mu     sync.Mutex
	cancel map[uint64]context.CancelFunc
}

func newServer(control io.ReadWriter, roles node.Roles) *server {
	return &server{
		roles: roles, dec: json.NewDecoder(control), enc: json.NewEncoder(control),
		cancel: map[uint64]context.CancelFunc{},
	}
}

// serve answers requests, each in a goroutine of its own, until the socket ends.
// It does not wait for roles that still run: the process is about to exit.
func (s *server) serve(life context.Context) error {
	for {
		var m message
		switch err := s.dec.Decode(&m); {
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed), errors.Is(err, syscall.ECONNRESET):
			return nil
		case err != nil:
			return fmt.Errorf("control socket: %w", err)
		}
		if m.Cancel {
			s.mu.Lock()
			if cancel := s.cancel[m.ID]; cancel != nil {
				cancel()
			}
			s.mu.Unlock()
			continue
		}
		ctx, cancel := context.WithCancel(node.WithBackground(life, life))
		s.mu.Lock()
		s.cancel[m.ID] = cancel
		s.mu.Unlock()
		go s.answer(ctx, m)
	}
}

func (s *server) answer(ctx context.Context, m message) {
	reply := message{ID: m.ID}
	result, err := s.run(ctx, m)
	if err == nil && result != nil {
		reply.Result, err = json.Marshal(result)
	}
	if err != nil {
		reply.Result, reply.Error = nil, newRoleError(err)
	}
	s.mu.Lock()
	s.cancel[m.ID]()
	delete(s.cancel, m.ID)
	s.mu.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	// A failed write means that the controller is gone, which serve notices.
	_ = s.enc.Encode(reply)
}

func (s *server) run(ctx context.Context, m message) (any, error) {
	role := s.roles[m.Role]
	if role == nil {
		return nil, fmt.Errorf("no such role %q", m.Role)
	}
	return role(ctx, m.Arg)
}

// client is the controller's side of the control socket.
type client struct {
	control io.ReadWriteCloser

	writing sync.Mutex
	enc     *json.Encoder

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan message
	gone    error // set once: the reason why nothing will be answered any more
}

func newClient(control io.ReadWriteCloser) *client {
	return &client{control: control, enc: json.NewEncoder(control), pending: map[uint64]chan message{}}
}

// receive hands responses to their callers until the socket ends.
func (c *client) receive() {
	dec := json.NewDecoder(c.control)
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			return
		}
		c.mu.Lock()
		answer := c.pending[m.ID]
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if answer != nil { // nil: the caller gave up
			answer <- m
		}
	}
}

// errGone is the error of calls to a node whose process has ended.
var errGone = errors.New("the node is gone")

// fail ends all calls, those of now and those to come, with err.
func (c *client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone == nil {
		c.gone = err
	}
	for id, answer := range c.pending {
		delete(c.pending, id)
		close(answer)
	}
}

// call plays a role and waits. When ctx ends first, the role's context is
// cancelled and call returns at once, without waiting for the role.
func (c *client) call(ctx context.Context, role string, arg, result any) error {
	raw, err := json.Marshal(arg)
	if err != nil {
		return fmt.Errorf("argument: %w", err)
	}
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.gone != nil {
		c.mu.Unlock()
		return c.gone
	}
	c.last++
	id := c.last
	c.pending[id] = answer
	c.mu.Unlock()

	if err := c.send(message{ID: id, Role: role, Arg: raw}); err != nil {
		return errGone
	}
	select {
	case m, ok := <-answer:
		switch {
		case !ok:
			return c.gone // set before the channel was closed
		case m.Error != nil:
			return m.Error
		case result == nil || len(m.Result) == 0:
			return nil
		}
		return json.Unmarshal(m.Result, result)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		_ = c.send(message{ID: id, Cancel: true})
		return ctx.Err()
	}
}

func (c *client) send(m message) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.enc.Encode(m)
}
