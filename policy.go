package servicetraceroute

import (
	"fmt"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/trigger"
)

// policies puts into the watch how its flows are traced.
func (s Selection) policies(cfg Config, w *engine.Watch) error {
	all, err := s.policy().plan(cfg)
	if err != nil {
		return fmt.Errorf("servicetraceroute: Selection.%w", err)
	}
	w.Policy, w.Policies = *all, map[string]*engine.Policy{}
	for name, p := range s.Policies {
		if w.Policies[name], err = p.plan(cfg); err != nil {
			return fmt.Errorf("servicetraceroute: Selection.Policies[%q]: %w", name, err)
		}
	}
	return nil
}

// policy is that of the flows whose service has none of its own.
func (s Selection) policy() Policy {
	return Policy{Params: s.Params, Every: s.Every, Retrace: s.Retrace, Per: s.Per, OnPayload: s.OnPayload, When: s.When, CoolDown: s.CoolDown}
}

// plan checks the policy and fills in the documented defaults.
func (p Policy) plan(cfg Config) (*engine.Policy, error) {
	params, err := p.Params.or(cfg.Defaults).plan()
	if err != nil {
		return nil, err
	}
	if p.Retrace < 0 {
		return nil, fmt.Errorf("%s: %v is negative", "Retrace", p.Retrace)
	}
	if _, err := p.Per.MarshalText(); err != nil {
		return nil, fmt.Errorf("%s: unknown", "Per")
	}
	if p.Every == 0 {
		p.Every = defaultEvery
	}
	out := &engine.Policy{Params: params, Every: p.Every, Retrace: p.Retrace, Per: p.Per, OnPayload: p.OnPayload}
	return out, p.trigger(out)
}

// defaultCoolDown is the documented one.
const defaultCoolDown = time.Minute

// trigger fills in what begins traces.
func (p Policy) trigger(out *engine.Policy) error {
	switch {
	case p.CoolDown < 0:
		return fmt.Errorf("%s: %v is negative", "CoolDown", p.CoolDown)
	case p.When == "" && p.CoolDown > 0:
		return fmt.Errorf("%s: it is without %s", "CoolDown", "When")
	case p.When == "":
		return nil
	}
	when, err := trigger.Compile(p.When)
	if err != nil {
		return fmt.Errorf("%s: %w", "When", err)
	}
	out.When, out.CoolDown = when, p.CoolDown
	if p.CoolDown == 0 {
		out.CoolDown = defaultCoolDown
	}
	return nil
}
