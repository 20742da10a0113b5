package trace

// The text form of every enumeration: String for people, MarshalText and
// UnmarshalText for JSON and flags. Unknown words are errors.

// String returns the published word, or "invalid(n)".
func (p Proto) String() string { return word(p, protoWords) }

// MarshalText returns the published word; an invalid value is an error.
func (p Proto) MarshalText() ([]byte, error) { return marshalWord(p, protoWords, "protocol") }

// UnmarshalText accepts exactly the published words.
func (p *Proto) UnmarshalText(text []byte) (err error) {
	*p, err = parseWord[Proto](string(text), protoWords, "protocol")
	return err
}

// String returns the published word, or "invalid(n)".
func (a Algorithm) String() string { return word(a, algorithmWords) }

// MarshalText returns the published word; an invalid value is an error.
func (a Algorithm) MarshalText() ([]byte, error) { return marshalWord(a, algorithmWords, "algorithm") }

// UnmarshalText accepts exactly the published words.
func (a *Algorithm) UnmarshalText(text []byte) (err error) {
	*a, err = parseWord[Algorithm](string(text), algorithmWords, "algorithm")
	return err
}

// String returns the published word, or "invalid(n)".
func (d Direction) String() string { return word(d, directionWords) }

// MarshalText returns the published word; an invalid value is an error.
func (d Direction) MarshalText() ([]byte, error) { return marshalWord(d, directionWords, "direction") }

// UnmarshalText accepts exactly the published words.
func (d *Direction) UnmarshalText(text []byte) (err error) {
	*d, err = parseWord[Direction](string(text), directionWords, "direction")
	return err
}

// String returns the published word, or "invalid(n)".
func (b By) String() string { return word(b, byWords) }

// MarshalText returns the published word; an invalid value is an error.
func (b By) MarshalText() ([]byte, error) { return marshalWord(b, byWords, "match reason") }

// UnmarshalText accepts exactly the published words.
func (b *By) UnmarshalText(text []byte) (err error) {
	*b, err = parseWord[By](string(text), byWords, "match reason")
	return err
}

// String returns the published word, or "invalid(n)".
func (r ReplyKind) String() string { return word(r, replyKindWords) }

// MarshalText returns the published word; an invalid value is an error.
func (r ReplyKind) MarshalText() ([]byte, error) { return marshalWord(r, replyKindWords, "reply kind") }

// UnmarshalText accepts exactly the published words.
func (r *ReplyKind) UnmarshalText(text []byte) (err error) {
	*r, err = parseWord[ReplyKind](string(text), replyKindWords, "reply kind")
	return err
}

// String returns the published word, or "invalid(n)".
func (s Stop) String() string { return word(s, stopWords) }

// MarshalText returns the published word; an invalid value is an error.
func (s Stop) MarshalText() ([]byte, error) { return marshalWord(s, stopWords, "stop reason") }

// UnmarshalText accepts exactly the published words.
func (s *Stop) UnmarshalText(text []byte) (err error) {
	*s, err = parseWord[Stop](string(text), stopWords, "stop reason")
	return err
}

// String returns the published word, or "invalid(n)".
func (r Reason) String() string { return word(r, reasonWords) }

// MarshalText returns the published word; an invalid value is an error.
func (r Reason) MarshalText() ([]byte, error) { return marshalWord(r, reasonWords, "refusal reason") }

// UnmarshalText accepts exactly the published words.
func (r *Reason) UnmarshalText(text []byte) (err error) {
	*r, err = parseWord[Reason](string(text), reasonWords, "refusal reason")
	return err
}

// String returns the published word, or "invalid(n)".
func (d DestinationBy) String() string { return word(d, destinationByWords) }

// MarshalText returns the published word; an invalid value is an error.
func (d DestinationBy) MarshalText() ([]byte, error) {
	return marshalWord(d, destinationByWords, "destination evidence")
}

// UnmarshalText accepts exactly the published words.
func (d *DestinationBy) UnmarshalText(text []byte) (err error) {
	*d, err = parseWord[DestinationBy](string(text), destinationByWords, "destination evidence")
	return err
}

// String returns the published word, or "invalid(n)".
func (f FlowState) String() string { return word(f, flowStateWords) }

// MarshalText returns the published word; an invalid value is an error.
func (f FlowState) MarshalText() ([]byte, error) { return marshalWord(f, flowStateWords, "flow state") }

// UnmarshalText accepts exactly the published words.
func (f *FlowState) UnmarshalText(text []byte) (err error) {
	*f, err = parseWord[FlowState](string(text), flowStateWords, "flow state")
	return err
}

// String returns the published word, or "invalid(n)".
func (c FindingKind) String() string { return word(c, findingWords) }

// MarshalText returns the published word; an invalid value is an error.
func (c FindingKind) MarshalText() ([]byte, error) { return marshalWord(c, findingWords, "finding") }

// UnmarshalText accepts exactly the published words.
func (c *FindingKind) UnmarshalText(text []byte) (err error) {
	*c, err = parseWord[FindingKind](string(text), findingWords, "finding")
	return err
}
