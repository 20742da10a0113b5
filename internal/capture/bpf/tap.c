// The program of a Tap (../tap_linux.go), at the tcx hooks of an interface. Of every flow it
// hands out the first packets, and what begins or ends it; of flows that are followed,
// everything; ICMP errors; DNS; and QUIC Initials. While very many flows begin, only what
// tells whose each of them is. Packets go on as they came.
//
// SPDX-License-Identifier: Apache-2.0

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TCX_NEXT -1

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ICMPV6 58

#define FIN 0x01
#define SYN 0x02
#define RST 0x04

#define FIRST 16           // packets of a flow that are handed out in any case
#define CLIENT_PORTS 32768 // see ClientPorts
#define DNS 53
#define INITIAL 1200       // bytes, the least that a QUIC client begins with

#define HEADERS 160 // bytes from the IP header on
#define SHORT 704
#define MEDIUM 1664
#define LONG 4256

#define FLOWS 65536 // at least, see tableSize
#define NEW_EACH_MS 20 // flows and processor that may be taken in
#define LEAN_AFTER 3   // of these, so many; of the others less is shown
#define SPAN 26        // 2^26 ns, 67 ms
#define HURRIED 64     // flows and processor that begin in a span; while more do, they are brief ones
#define WAKE_EACH_NS 1500000
#define WAKE_AT (2 << 20) // bytes that wait

// What user space changes.
struct {
	__u32 epoch;    // another one: the first packets of all flows are wanted anew
	__u8 udp;       // datagrams of flows
	__u8 names;     // what tells names: DNS, first words of those that connect from here
	__u8 names_in;  // and of those that connect to here
	__u8 zero;
	__u32 awake;    // it looks by itself, there is no need to wake it
} volatile conf;

struct flow {
	__u8 near[16]; // this host's, or that of whoever it forwards for
	__u8 far[16];
	__be16 near_port, far_port;
	__u8 proto, v6;
	__u16 zero;
};

struct state {
	__u32 epoch;
	__u16 left; // packets that are handed out in any case
	__u8 followed;
	__u8 lean; // of its first packets the words of who connects are enough
	__u64 since; // all its packets are handed out; 0: they are not
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS);
	__type(key, struct flow);
	__type(value, struct state);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} ring SEC(".maps");

// pace is how fast flows begin.
struct pace {
	__u64 ms;    // in which, about
	__u64 flows; // so many were taken in
	__u64 span;  // and in which of those
	__u32 these, before; // so many, and so many in the one before
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pace);
} paces SEC(".maps");

// What user space reads.
struct {
	__u64 full;     // packets that found no room
	__u64 withheld; // and of flows that were not taken in: too many new ones at once
	__u64 brief;    // flows
} lost;

static volatile __u64 woken; // when user space was, last

// quiet remembers flows of which nothing more is wanted, so that most packets cost no look
// into the table: at the place that a flow's hash gives, the rest of the hash and the epoch,
// and in the lowest bits NO_MORE. Who is not found there is looked up. User space computes the
// same, see tapFlow.mark.
//
// Of brief flows, which have no place in the table, it remembers how many packets were handed
// out: BRIEF and those.
#define QUIET (1 << 18)
#define STAGE 7
#define NO_MORE 7
#define BRIEF 1
__u32 quiet[QUIET];

// hushed holds the flows with NO_MORE once more, small enough to stay in a processor's caches:
// where thousands of flows take turns a look into quiet misses them, and costs more than all the
// rest. At each place are four, of each 16 bits of its mark. A flow that is not among them may
// have the same bits, a few in 100,000 do; so one packet of 64 is looked up in quiet as well,
// and what stands there counts. User space takes flows out, see Tap.speak.
#define HUSHED (1 << 13)
#define EACH 0x0001000100010001
struct four {
	__u16 tag[4];
} hushed[HUSHED] __attribute__((aligned(8)));

// record is what a packet is handed out as; its bytes, from the IP header on, follow.
struct record {
	__u64 ns;
	__u32 ifindex;
	__u32 len; // of the packet from the IP header on
	__u16 kept;
	__u8 egress, foreign;
	__u8 hop[6];
	__u8 hop_known, brief, zero[4];
};

struct packet {
	struct __sk_buff *skb;
	__u32 at;  // of the IP header
	__u32 len; // from there on
	__u8 egress;
	__u8 link; // bytes of the link's header, which begins with the destination's address
	__u8 brief; // it is the first that is shown of a brief flow
};

static __always_inline __u64 wake(__u64 now)
{
	// Waking for each one costs more than all the rest. Who was woken looks again by itself
	// until nothing comes any more.
	if ((conf.awake || now - woken < WAKE_EACH_NS) && bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) < WAKE_AT)
		return BPF_RB_NO_WAKEUP;
	woken = now;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline void hand_out(const struct packet *p, __u32 size)
{
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r) + size, 0);
	__u32 kept = p->len;

	if (!r) {
		__sync_fetch_and_add(&lost.full, 1);
		return;
	}
	if (kept > size)
		kept = size;
	r->ns = bpf_ktime_get_ns();
	r->ifindex = p->skb->ifindex;
	r->len = p->len;
	r->egress = p->egress;
	r->foreign = p->skb->pkt_type == PACKET_OTHERHOST;
	r->hop_known = p->link > 0;
	r->brief = p->brief;
	__builtin_memset(r->zero, 0, sizeof(r->zero));
	r->kept = kept;
	if (!p->link || bpf_skb_load_bytes(p->skb, 0, r->hop, sizeof(r->hop)) < 0)
		__builtin_memset(r->hop, 0, sizeof(r->hop));
	if (kept < 1 || bpf_skb_load_bytes(p->skb, p->at, (__u8 *)r + sizeof(*r), kept) < 0) {
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
		return;
	}
	bpf_ringbuf_submit(r, wake(r->ns));
}

// words hands out a packet with what it carries.
static __noinline void words(struct __sk_buff *skb, __u32 at, __u8 egress, __u8 link, __u8 brief)
{
	struct packet p = { skb, at, skb->len - at, egress, link, brief };

	if (p.len <= HEADERS)
		hand_out(&p, HEADERS);
	else if (p.len <= MEDIUM)
		hand_out(&p, MEDIUM);
	else
		hand_out(&p, LONG);
}

// ends are where a packet holds what makes its flow.
struct ends {
	const __u8 *near, *far, *near_port, *far_port;
	__u8 proto, v6;
};

static __always_inline __u64 word(const __u8 *b) { return *(const __u64 *)b; }

static __always_inline __u64 hash(const struct ends *e)
{
	__u64 h = (__u64)*(const __u16 *)e->near_port << 32 | (__u64)*(const __u16 *)e->far_port << 16 | e->proto;

	if (e->v6) {
		h = (h ^ word(e->near)) * 0x9e3779b97f4a7c15;
		h = (h ^ h >> 32 ^ word(e->far)) * 0xc2b2ae3d27d4eb4f;
		h = (h ^ h >> 32 ^ word(e->near + 8)) * 0x9e3779b97f4a7c15;
		h = (h ^ h >> 32 ^ word(e->far + 8)) * 0xc2b2ae3d27d4eb4f;
	} else {
		h = (h ^ *(const __u32 *)e->near) * 0x9e3779b97f4a7c15;
		h = (h ^ h >> 32 ^ *(const __u32 *)e->far) * 0xc2b2ae3d27d4eb4f;
	}
	return h ^ h >> 29;
}

// silence puts a flow to the quiet ones, or the brief ones, unless user space follows it by now.
static __noinline int silence(const struct flow *f, __u32 at, __u32 mark)
{
	struct state *s;

	if (!f)
		return 0;
	at &= QUIET - 1;
	__sync_lock_test_and_set(&quiet[at], mark); // before the look, whoever follows it does it the other way around
	s = bpf_map_lookup_elem(&flows, f);
	if (s && s->followed)
		quiet[at] = 0;
	return 0;
}

#define MARK(h, epoch) (((__u32)((h) >> 32) ^ (epoch) * 0x9e3779b1) | NO_MORE)
#define PLACE(h) ((h) >> 18 & (HUSHED - 1))
#define TAG(mark) ((__u16)((mark) >> 16) ?: 1)

// is_hushed looks for a flow among those at hand.
static __always_inline int is_hushed(__u64 h, __u32 epoch)
{
	__u64 x = *(const volatile __u64 *)&hushed[PLACE(h)] ^ TAG(MARK(h, epoch)) * EACH;

	return ((x - EACH) & ~x & EACH << 15) != 0; // one of the four is 0
}

// hush puts a flow of which nothing more is wanted to those at hand.
static __noinline int hush(__u64 h, __u32 mark)
{
	volatile __u16 *tags = hushed[PLACE(h)].tag;
	__u32 at = h & (QUIET - 1), chance = bpf_get_prandom_u32(), i;

	for (i = 0; i < 4; i++)
		if (!tags[i])
			break;
	if (i == 4) { // by flows that are over; or there are more than find a place, who shall not take turns all the time
		if (chance & 7)
			return 0;
		i = chance >> 3 & 3;
	}
	tags[i] = TAG(mark);
	// It may be followed by now: then its place in quiet was emptied before this one is.
	if (__sync_val_compare_and_swap(&quiet[at], mark, mark) != mark)
		tags[i] = 0;
	return 0;
}

// unhush takes it from there.
static __noinline int unhush(__u64 h, __u32 mark)
{
	volatile __u16 *tags = hushed[PLACE(h)].tag;
	__u32 i;

	for (i = 0; i < 4; i++)
		if (tags[i] == TAG(mark))
			tags[i] = 0;
	return 0;
}

// standing tells of a packet whether its flow begins, is followed, or neither; of a brief flow,
// whether it is the first one that is shown, or HIDDEN, also where it begins or ends it.
enum standing { PASSES, FOLLOWED, BEGINS, BRIEFLY, HIDDEN };

// content is what a packet has for those who want to know a flow: words of who connects, data
// that only shows how far the flow is, or nothing that the next one does not tell as well.
// A SYN is none of these.
enum content { NOTHING, DATA, WORDS, HAND };

// fresh takes in a flow that was not known, if there were not too many just now.
static __noinline int fresh(const struct flow *f, __u32 at, __u32 mark, int has)
{
	struct state s = { .epoch = conf.epoch, .left = FIRST - 1, .since = bpf_ktime_get_ns() };
	__u64 ms = s.since >> 20, span = s.since >> SPAN;
	__u32 zero = 0;
	struct pace *p = bpf_map_lookup_elem(&paces, &zero);
	int hurried;

	if (!p || !f)
		return PASSES;
	if (p->span != span) {
		p->before = p->span + 1 == span ? p->these : 0;
		p->these = 0;
		p->span = span;
	}
	hurried = p->these >= HURRIED || p->before >= HURRIED;
	if (has == HAND) // it takes no room yet, so a flood of them takes none from others
		return hurried ? HIDDEN : BEGINS;
	if (p->ms != ms) {
		p->ms = ms;
		p->flows = 0;
	}
	if (p->flows >= NEW_EACH_MS) {
		__sync_fetch_and_add(&lost.withheld, 1);
		return PASSES;
	}
	p->flows++;
	p->these++;
	if (hurried) {
		__sync_fetch_and_add(&lost.brief, 1);
		silence(f, at, (mark & ~STAGE) | (has == NOTHING ? BRIEF : BRIEF + 1));
		return has == NOTHING ? HIDDEN : BRIEFLY;
	}
	s.lean = p->flows > LEAN_AFTER;
	bpf_map_update_elem(&flows, f, &s, BPF_NOEXIST); // user space may follow it by now
	return BEGINS;
}

static __always_inline enum standing standing(const struct ends *e, enum content has)
{
	__u32 epoch = conf.epoch;
	__u64 h = hash(e);
	__u32 at = h & (QUIET - 1), mark = MARK(h, epoch), was = quiet[at];
	int hushed_too = is_hushed(h, epoch);
	struct flow f = {};
	struct state *s;

	if (hushed_too && (has == HAND || was != mark))
		unhush(h, mark);
	if ((was | STAGE) == mark) {
		if (has == HAND) {
			quiet[at] = 0;
		} else if (was == mark) {
			if (!hushed_too)
				hush(h, mark);
			return PASSES;
		} else if (has == NOTHING || ((was & STAGE) > BRIEF && has != WORDS)) {
			return HIDDEN;
		} else {
			__sync_val_compare_and_swap(&quiet[at], was, was + 1); // not if it is followed by now
			return (was & STAGE) > BRIEF ? BEGINS : BRIEFLY;
		}
	}
	if (e->v6) {
		__builtin_memcpy(f.near, e->near, 16);
		__builtin_memcpy(f.far, e->far, 16);
	} else {
		__builtin_memcpy(f.near, e->near, 4);
		__builtin_memcpy(f.far, e->far, 4);
	}
	__builtin_memcpy(&f.near_port, e->near_port, 2);
	__builtin_memcpy(&f.far_port, e->far_port, 2);
	f.proto = e->proto;
	f.v6 = e->v6;
	s = bpf_map_lookup_elem(&flows, &f);
	if (!s)
		return fresh(&f, at, mark, has);
	if (s->epoch != epoch || has == HAND) {
		s->epoch = epoch;
		s->left = FIRST;
		if (has == HAND || !s->since)
			s->since = bpf_ktime_get_ns();
	}
	if (s->left > 0) {
		s->left--;
		if (!s->lean || s->followed || has >= WORDS)
			return BEGINS;
		if (has == DATA && s->since)
			s->since = 0;
		return PASSES;
	}
	if (s->followed)
		return FOLLOWED;
	if (s->since)
		s->since = 0;
	silence(&f, at, mark);
	return PASSES;
}

static __always_inline int tcp(struct packet *p, const struct ends *e, __u8 flags, int say, int data)
{
	enum standing s = standing(e, flags & SYN ? HAND : !data ? NOTHING : say ? WORDS : DATA);

	if (s == HIDDEN)
		return TCX_NEXT;
	p->brief = s == BRIEFLY;
	if (s >= BEGINS && say && p->len > HEADERS)
		words(p->skb, p->at, p->egress, p->link, p->brief);
	else if (s != PASSES || flags & (SYN | FIN | RST))
		hand_out(p, HEADERS);
	return TCX_NEXT;
}

// udp takes in a datagram that begins with this byte; 0: it is empty.
static __always_inline int udp(struct packet *p, const struct ends *e, __u8 first)
{
	enum standing s = standing(e, WORDS);
	// Also what is no Initial tells of one while a flow begins: ids, answers, checks of a new
	// way. Later an Initial may begin one more connection of the flow.
	int begins = s >= BEGINS && (first & 0x80 || p->len >= INITIAL);
	int another = (s == PASSES || s == FOLLOWED) && p->len >= INITIAL && (first & 0xe0) == 0xc0;

	p->brief = s == BRIEFLY;
	if (conf.names && (begins || another))
		words(p->skb, p->at, p->egress, p->link, p->brief);
	else if (s != PASSES)
		hand_out(p, HEADERS);
	return TCX_NEXT;
}

// The compiler would keep these in halves of registers, which the kernel takes for numbers.
#define BOUND(skb, field)                                                                            \
	({                                                                                           \
		const __u8 *bound;                                                                   \
		asm volatile("%[to] = *(u32 *)(%[of] + %[at])"                                       \
			     : [to] "=r"(bound)                                                      \
			     : [of] "r"(skb), [at] "i"(__builtin_offsetof(struct __sk_buff, field)));\
		bound;                                                                               \
	})
#define START(skb) BOUND(skb, data)
#define END(skb) BOUND(skb, data_end)

// at_hand makes so many bytes from the IP header on directly readable.
static __always_inline int at_hand(const struct packet *p, __u32 n)
{
	if (START(p->skb) + p->at + n <= END(p->skb))
		return 1;
	return p->len >= n && bpf_skb_pull_data(p->skb, p->at + n) == 0;
}

// aside draws one of 64 packets, by what differs from packet to packet: identification, or
// sequence or acknowledgement number, or checksum of UDP.
static __always_inline int aside(__u32 id, const __u8 *t)
{
	id += *(const __u16 *)(t + 6) + *(const __u16 *)(t + 10);
	return id * 0x9e3779b1 < 1 << 26;
}

// glance reports of most packets that nothing is to be done about them: they neither begin nor
// end anything, and their flows are hushed. All that it runs lies close together.
static __always_inline int glance(struct __sk_buff *skb, __u8 egress, __u8 link)
{
	const __u8 *ip = START(skb) + link, *end = END(skb), *t;
	struct ends e = {};

	if (skb->protocol == bpf_htons(ETHERTYPE_IPV4)) {
		t = ip + 20;
		if (t + 20 > end || ip[0] != 0x45 || ((ip[6] & 0x3f) | ip[7]) != 0)
			return 0;
		e.proto = ip[9];
		e.near = egress ? ip + 12 : ip + 16;
		e.far = egress ? ip + 16 : ip + 12;
	} else if (skb->protocol == bpf_htons(ETHERTYPE_IPV6)) {
		t = ip + 40;
		if (t + 20 > end || ip[0] >> 4 != 6)
			return 0;
		e.proto = ip[6];
		e.v6 = 1;
		e.near = egress ? ip + 8 : ip + 24;
		e.far = egress ? ip + 24 : ip + 8;
	} else {
		return 0;
	}
	e.near_port = egress ? t : t + 2;
	e.far_port = egress ? t + 2 : t;
	if (e.proto == PROTO_TCP ? t[13] & (SYN | FIN | RST) : e.proto != PROTO_UDP || skb->len >= link + INITIAL)
		return 0;
	return is_hushed(hash(&e), conf.epoch) && !aside(e.v6 ? 0 : *(const __u16 *)(ip + 4), t);
}

static __always_inline int tap(struct __sk_buff *skb, __u8 egress, __u8 link)
{
	struct packet p = { skb, link, skb->len - link, egress, link };
	struct ends e = {};
	const __u8 *ip, *t, *end;
	__u32 header, need, data;
	int dns, say;

	if (skb->vlan_present || skb->len < link + 28)
		return TCX_NEXT;
	if (!egress && skb->pkt_type == PACKET_OTHERHOST)
		return TCX_NEXT; // of other hosts, whose flows are to take no room; or a bridge shows it again
	if (skb->protocol == bpf_htons(ETHERTYPE_IPV4)) {
		if (!at_hand(&p, 28))
			return TCX_NEXT;
		ip = START(skb) + link;
		if (ip + 20 > END(skb) || ip[0] >> 4 != 4)
			return TCX_NEXT;
		if (((ip[6] & 0x1f) | ip[7]) != 0)
			return TCX_NEXT; // a fragment that is not the first has no ports
		e.proto = ip[9];
		header = (ip[0] & 15) * 4;
	} else if (skb->protocol == bpf_htons(ETHERTYPE_IPV6)) {
		if (!at_hand(&p, 48))
			return TCX_NEXT;
		ip = START(skb) + link;
		if (ip + 40 > END(skb) || ip[0] >> 4 != 6)
			return TCX_NEXT;
		e.proto = ip[6];
		e.v6 = 1;
		header = 40;
		if (e.proto == 0 || e.proto == 43 || e.proto == 44 || e.proto == 60) {
			hand_out(&p, SHORT); // extension headers are rare
			return TCX_NEXT;
		}
	} else {
		return TCX_NEXT;
	}
	if (e.proto != PROTO_TCP && e.proto != PROTO_UDP && e.proto != PROTO_ICMP && e.proto != PROTO_ICMPV6)
		return TCX_NEXT;
	need = header + (e.proto == PROTO_TCP ? 20 : 8);
	if (!at_hand(&p, need))
		return TCX_NEXT;
	// What was read before may have moved.
	ip = START(skb) + link;
	end = END(skb);
	if (ip + 40 > end && (e.v6 || ip + 20 > end))
		return TCX_NEXT;
	if (header > 60)
		return TCX_NEXT;
	t = ip + header;
	if (t + 8 > end)
		return TCX_NEXT;
	if (e.proto == PROTO_ICMP || e.proto == PROTO_ICMPV6) {
		if (e.v6 ? t[0] >= 1 && t[0] <= 3 : t[0] == 3 || t[0] == 11)
			hand_out(&p, SHORT);
		return TCX_NEXT;
	}
	if (e.v6) {
		if (ip + 40 > end)
			return TCX_NEXT;
		e.near = egress ? ip + 8 : ip + 24;
		e.far = egress ? ip + 24 : ip + 8;
	} else {
		if (ip + 20 > end)
			return TCX_NEXT;
		e.near = egress ? ip + 12 : ip + 16;
		e.far = egress ? ip + 16 : ip + 12;
	}
	e.near_port = egress ? t : t + 2;
	e.far_port = egress ? t + 2 : t;
	dns = *(const __be16 *)e.near_port == bpf_htons(DNS) || *(const __be16 *)e.far_port == bpf_htons(DNS);
	if (conf.names && dns) {
		words(skb, p.at, egress, link, 0);
		return TCX_NEXT;
	}
	if (e.proto == PROTO_TCP) {
		if (t + 14 > end)
			return TCX_NEXT;
		say = conf.names && (egress || (conf.names_in && bpf_ntohs(*(const __be16 *)e.near_port) < CLIENT_PORTS));
		// A short frame is padded, which the header's length tells; that of more than 64 KiB is 0.
		data = e.v6 ? p.len : bpf_ntohs(*(const __be16 *)(ip + 2)) ?: p.len;
		return tcp(&p, &e, t[13], say, data > header + (t[12] >> 4) * 4);
	}
	if (!conf.udp)
		return TCX_NEXT;
	return udp(&p, &e, t + 9 <= end ? t[8] : 0);
}

// Apart from glance, for the same reason.
static __noinline int ether_in(struct __sk_buff *skb) { return tap(skb, 0, ETH_HLEN); }
static __noinline int ether_out(struct __sk_buff *skb) { return tap(skb, 1, ETH_HLEN); }
static __noinline int bare_in(struct __sk_buff *skb) { return tap(skb, 0, 0); }
static __noinline int bare_out(struct __sk_buff *skb) { return tap(skb, 1, 0); }

SEC("tcx/ingress")
int ethernet_ingress(struct __sk_buff *skb)
{
	return glance(skb, 0, ETH_HLEN) ? TCX_NEXT : ether_in(skb);
}

SEC("tcx/egress")
int ethernet_egress(struct __sk_buff *skb)
{
	return glance(skb, 1, ETH_HLEN) ? TCX_NEXT : ether_out(skb);
}

// Of links without a header.

SEC("tcx/ingress")
int bare_ingress(struct __sk_buff *skb)
{
	return glance(skb, 0, 0) ? TCX_NEXT : bare_in(skb);
}

SEC("tcx/egress")
int bare_egress(struct __sk_buff *skb)
{
	return glance(skb, 1, 0) ? TCX_NEXT : bare_out(skb);
}

// nothing is for comparisons of what a hook costs by itself.
SEC("tcx/ingress")
int nothing(struct __sk_buff *skb)
{
	return TCX_NEXT;
}

char _license[] SEC("license") = "Apache-2.0";
