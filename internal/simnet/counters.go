package simnet

// Counters are what happened at one end of a flow. The kernel's names for the
// same things stand beside them.
type Counters struct {
	SegmentsIn, SegmentsOut int64

	// Signs of harm, or of loss.
	Retransmits         int64 // RetransSegs
	FastRetransmits     int64 // TCPFastRetrans
	Timeouts            int64 // TCPTimeouts
	Recoveries          int64 // TCPRenoRecovery, TCPSackRecovery
	DSACKReceived       int64 // TCPDSACKRecv
	DSACKUndo           int64 // TCPDSACKUndo: window reductions wrongly taken back
	BeyondWindow        int64 // BeyondWindow: data received that was not allowed
	PAWSRejected        int64 // PAWSEstab
	DuplicateDataRehash int64 // TcpDuplicateDataRehash
	TimeoutRehash       int64 // TcpTimeoutRehash
	ChallengeACKs       int64 // TCPChallengeACK
	ResetsReceived      int64
	ResetsSent          int64

	// What happens in healthy flows too.
	DupACKsReceived int64 // without data, window change or progress
	OutOfOrder      int64 // TCPOFOQueue
	DSACKSent       int64 // TCPDSACKOldSent
	KeepAlives      int64 // TCPKeepAlive
	WindowProbes    int64 // TCPWinProbe
	SoftErrors      int64 // ICMP errors that were believed, and survived

	// Traces of harmless probes.
	OldSegments     int64 // out of the window, without payload
	OldAnswered     int64 // of those answered with an acknowledgement
	ACKsSkipped     int64 // TCPACKSkippedSeq and ...PAWS: not answered, for the 500 ms limit
	PAWSOldACK      int64 // PAWSOldAck: ignored for an old timestamp
	OutOfWindowICMP int64 // OutOfWindowIcmps: errors about segments below SND.UNA
}

// Harm returns the sum of the signs of harm.
func (c Counters) Harm() int64 {
	return c.Retransmits + c.Timeouts + c.Recoveries + c.DSACKReceived + c.DSACKUndo + c.BeyondWindow +
		c.PAWSRejected + c.DuplicateDataRehash + c.TimeoutRehash + c.ChallengeACKs + c.ResetsReceived + c.ResetsSent
}
