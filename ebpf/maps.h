/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * Every map, declared once. The loader puts this file in front of the programs and compiles all of
 * it as one text, because BCC rewrites map calls in the main text only.
 *
 * Given by the loader: PIN_DIR (a string), the MAX_... of the maps, of which MAX_CONNS is a power of
 * two, EVENT_BYTES, and HAVE_SET_RETVAL, HAVE_COARSE_CLOCK, HAVE_CMPXCHG, HAVE_PROCESS (0 or 1).
 * Addresses are network order; an IPv4 one is kept IPv4-mapped where both families share a field.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/socket.h>

#define AF_INET 2
#define AF_INET6 10
#define ECONNREFUSED 111

#define ALLOW 1
#define REFUSE 0

/* ---- vips4, vips6: what a program connects to -> where its VIP is in `vips` -------------------- */
struct vip4_key {                                                        /* "=4s2sBx" in layout.py */
    __be32 addr;
    __be16 port;
    u8 proto;
    u8 zero;
};
_Static_assert(sizeof(struct vip4_key) == 8, "vip4_key: keep minuteman/dataplane/layout.py in step");

struct vip6_key {                                                       /* "=16s2sBx" in layout.py */
    __be32 addr[4];
    __be16 port;
    u8 proto;
    u8 zero;
};
_Static_assert(sizeof(struct vip6_key) == 20, "vip6_key: keep minuteman/dataplane/layout.py in step");

/* ---- vips: the run of backends behind each VIP ------------------------------------------------- */
struct run {
    u32 base;                             /* first slot; sorted: up, maybe, draining */
    u32 up;                               /* slots per tier */
    u32 maybe;
    u32 draining;
};

/* The agent writes it through a mapping: a change goes into the run that is not in use, and then
 * `turn`, one aligned word, says that it is. So an entry is whole wherever the agent is killed, and
 * a program that reads `turn` before and after its copy knows that the copy is of one change. */
struct vip {                                                 /* "=II4I4I16s2sBxI" in layout.py */
    u32 turn;                             /* runs[turn % 2] is in use; only ever counts up */
    u32 id;                               /* never that of two VIPs at once */
    struct run runs[2];
    __be32 addr[4];                       /* whose entry this is, to be compared: the place of a
                                           * VIP that is gone is used again */
    __be16 port;
    u8 proto;
    u8 zero;
    u32 affinity_seconds;                 /* a client keeps its backend so long; 0: it does not */
};
_Static_assert(sizeof(struct vip) == 64, "vip: keep minuteman/dataplane/layout.py in step");

/* ---- slots, backends: a run is a piece of the slot array, a slot is the id of a backend -------- */
struct backend {                                                  /* "=16s2sBBHHII" in layout.py */
    __be32 addr[4];
    __be16 port;
    u8 proto;
    u8 tier;
    u16 weight;                           /* 1-100; 0: the id is free */
    u16 flags;
    u32 vip_id;                           /* a backend is a member of one VIP; 0: of none */
    u32 epoch;                            /* counts the members that have used this id */
};
_Static_assert(sizeof(struct backend) == 32, "backend: keep minuteman/dataplane/layout.py in step");

#define HAS_INNER 1                       /* a flag of a backend: it is in `inners` too */
enum tier { UP, MAYBE, DRAINING };

#define CONNECT_BUCKETS 20

struct backend_stats {                                        /* "=4I8Q20Q16x" in layout.py */
    u32 connecting;
    u32 active;                           /* connected UDP sockets, too */
    u32 consecutive_failures;
    u32 zero;
    u64 ejected_until_ns;                 /* bpf_ktime_get_ns(); 0: it is not ejected */
    u64 attempts;                         /* connects, and UDP sockets that it was given to */
    u64 successes;
    u64 failures;
    u64 last_failure_ns;
    u64 bytes_sent;                       /* of TCP connections that are closed, and acknowledged */
    u64 bytes_received;
    u64 retransmits;
    u64 connect_log2_us[CONNECT_BUCKETS]; /* bucket i: less than 2^i microseconds; the last: all others */
    u64 zeros[2];                         /* 256 bytes: what a choice reads is in one cache line */
};
_Static_assert(sizeof(struct backend_stats) == 256, "backend_stats: keep minuteman/dataplane/layout.py in step");

/* What carry_stats is run on; no map has it. */
struct carried_stats {                                    /* "=IIQ4I8Q20Q16x" in layout.py */
    u32 backend_id;                       /* 0: of none */
    u32 reason;                           /* whose `count` is that; REASON_COUNT: of none */
    u64 count;
    struct backend_stats added;
};
_Static_assert(sizeof(struct carried_stats) == 272, "carried_stats: keep minuteman/dataplane/layout.py in step");

/* ---- inners: where a backend behind a port of this very host listens itself --------------------- */
struct inner {                                                              /* "=16s2s2xI" in layout.py */
    __be32 addr[4];
    __be16 port;
    u16 zero;
    u32 backend_id;                       /* whose it is, to be compared: as for a VIP */
};
_Static_assert(sizeof(struct inner) == 24, "inner: keep minuteman/dataplane/layout.py in step");

/* ---- prefixes: whose the addresses are where no VIP was found; the longest prefix counts --------- */
struct prefix {                                                               /* "=I16s" in layout.py */
    u32 bits;
    __be32 addr[4];
};
_Static_assert(sizeof(struct prefix) == 20, "prefix: keep minuteman/dataplane/layout.py in step");

enum owner { NOBODY, VIPS, HOST };

/* ---- conns, more_conns: what a connecting or connected socket was given -------------------------- */
enum phase {
    CHOSEN,                               /* connect() has a backend; it may yet fail on its own */
    CONNECTING,                           /* counted as such */
    ACTIVE,                               /* likewise */
};

/* A socket is known by its cookie, which is never given to another one. Cookies are counted up, so
 * their low bits are a place in an array where the neighbours are in use too: it costs a third of a
 * hash, whose every entry is somewhere else. Who finds the place taken goes to the hash.
 *
 * For TCP everything that changes an entry's phase holds the socket's lock; for UDP it is in a system
 * call on the socket. So no entry is counted twice or not at all. */
struct conn {                                               /* "=16s16s2s2sIIBBBBIIQ" in layout.py */
    __be32 vip_addr[4];
    __be32 backend_addr[4];
    __be16 vip_port;
    __be16 backend_port;
    u32 backend_id;
    u32 epoch;
    u8 proto;
    u8 phase;
    u8 timeouts;                          /* unanswered SYNs */
    u8 abandoned;                         /* its owner closed it */
    u32 netns;                            /* cookie of the network namespace; they are few */
    u32 started_ms;                       /* coarse; wraps around */
    u64 cookie;                           /* 0: the place is free */
};
_Static_assert(sizeof(struct conn) == 64, "conn: keep minuteman/dataplane/layout.py in step");

#define SPILL_PLACES 64                   /* places that share an entry of `spills` */

/* ---- flows: what an unconnected UDP socket sends to a VIP, and what comes back ------------------- */
enum direction { TO_VIP, FROM_BACKEND };

struct flow_key {                                                       /* "=Q16s2sBxI" in layout.py */
    u64 cookie;
    __be32 addr[4];                       /* of the VIP, or of the backend */
    __be16 port;
    u8 direction;
    u8 zero;
    u32 zeros;
};
_Static_assert(sizeof(struct flow_key) == 32, "flow_key: keep minuteman/dataplane/layout.py in step");

struct flow {                                                           /* "=16s2s2xII" in layout.py */
    __be32 addr[4];                       /* of the VIP; TO_VIP: whose entry this is, to be compared */
    __be16 port;
    u16 zero;
    u32 backend_id;                       /* TO_VIP */
    u32 epoch;
};
_Static_assert(sizeof(struct flow) == 28, "flow: keep minuteman/dataplane/layout.py in step");

/* ---- affinities: which backend a client had last ------------------------------------------------- */
struct client {                                                            /* "=QQII" in layout.py */
    u64 cgroup;                           /* its container. Where version 1 has the containers, all */
    u64 netns;                            /* have one of version 2; most have a network of their own */
    u32 vip_id;
    u32 zero;
};
_Static_assert(sizeof(struct client) == 24, "client: keep minuteman/dataplane/layout.py in step");

struct affinity {                                                           /* "=IIQ" in layout.py */
    u32 backend_id;
    u32 epoch;
    u64 used_ns;                          /* coarse */
};
_Static_assert(sizeof(struct affinity) == 16, "affinity: keep minuteman/dataplane/layout.py in step");

/* ---- reasons: how each decision of a program ended, counted per CPU ------------------------------ */
enum reason {                                                      /* REASONS in layout.py */
    TRANSLATED,
    REFUSED_EMPTY,                        /* the VIP has no backend */
    REFUSED_UNKNOWN,                      /* there is no VIP, at an address that is for VIPs alone */
    REFUSED_TORN,                         /* its run was replaced under every one of our tries */
    RETRIED,                              /* it was replaced under one of them */
    UNTRACKED,                            /* no room for the socket's state: connected, not counted */
    EJECTED,                              /* a backend failed too often in a row */
    LAST_RESORT,                          /* all that were looked at are ejected: one was taken */
    SETTLED,                              /* a socket was found gone that no program saw going */
    EVENT_LOST,                           /* somebody listens, and there was no room in `events` */
    REASON_COUNT,
};

/* ---- options: one entry, of the agent's ---------------------------------------------------------- */
struct options {                                                            /* "=QQII" in layout.py */
    u64 host_netns;                       /* cookie of this host's own network; 0: unknown */
    u64 listening_until_ns;               /* bpf_ktime_get_ns(); 0: nobody listens to events */
    u32 skips;                            /* how many cgroups are left alone */
    u32 zero;
};
_Static_assert(sizeof(struct options) == 24, "options: keep minuteman/dataplane/layout.py in step");

/* ---- events: what became of connections, while somebody listens ---------------------------------- */
enum kind {                                                          /* KINDS in layout.py */
    KIND_CHOSEN,                          /* a backend was given; these four are reasons, too */
    KIND_REFUSED_EMPTY,
    KIND_REFUSED_UNKNOWN,
    KIND_REFUSED_TORN,
    KIND_NOT_SENT,                        /* TCP: closed before there was a SYN */
    KIND_UNANSWERED,                      /* a SYN was; another one follows */
    KIND_CONNECTED,
    KIND_REFUSED,                         /* by the backend, or on the way to it */
    KIND_GIVEN_UP,                        /* its owner did not wait any longer */
    KIND_TIMED_OUT,                       /* the kernel did not */
    KIND_CLOSED,                          /* it was connected */
    KIND_COUNT,
};
_Static_assert((u32)KIND_CHOSEN == TRANSLATED && (u32)KIND_REFUSED_EMPTY == REFUSED_EMPTY &&
               (u32)KIND_REFUSED_TORN == REFUSED_TORN, "kinds and reasons begin alike");

struct event {                                      /* "=QQQ16s16s16s2s2sIIBB2x" in layout.py */
    u64 time_ns;                          /* bpf_ktime_get_ns() */
    u64 cookie;                           /* of the socket */
    u64 cgroup;                           /* of the process that asks; 0: it is not known here */
    char command[16];                     /* name of its thread; empty: likewise */
    __be32 vip_addr[4];
    __be32 backend_addr[4];
    __be16 vip_port;
    __be16 backend_port;                  /* 0: there is no backend */
    u32 pid;                              /* of that process, as the host numbers it; 0: likewise */
    u32 waited_us;                        /* for the backend's answer */
    u8 kind;
    u8 proto;
    u16 zero;
};
_Static_assert(sizeof(struct event) == 88, "event: keep minuteman/dataplane/layout.py in step");

/* ---- about: what the bytes in the other maps are; nothing for a program --------------------------- */
struct about {                                                              /* "=8192s" in layout.py */
    char text[8192];
};

/* ---- meta: who wrote all this ------------------------------------------------------------------- */
struct meta {                                                         /* "=IIQ16s" in layout.py */
    u32 schema;
    u32 zero;
    u64 generation;
    u8 boot_id[16];
};
_Static_assert(sizeof(struct meta) == 32, "meta: keep minuteman/dataplane/layout.py in step");

#define PINNED(type, key, leaf, name, size, flags) \
    BPF_F_TABLE(type ":" PIN_DIR "/" #name, key, leaf, name, size, flags)

PINNED("hash", struct vip4_key, u32, vips4, MAX_VIPS, BPF_F_NO_PREALLOC);
PINNED("hash", struct vip6_key, u32, vips6, MAX_VIPS, BPF_F_NO_PREALLOC);
PINNED("array", int, struct vip, vips, MAX_VIPS, BPF_F_MMAPABLE);
PINNED("array", int, u32, slots, MAX_SLOTS, 0);
PINNED("array", int, struct backend, backends, MAX_BACKENDS, 0);
PINNED("array", int, struct backend_stats, backend_stats, MAX_BACKENDS, 0);
PINNED("hash", u32, struct inner, inners, MAX_BACKENDS, BPF_F_NO_PREALLOC);
PINNED("lpm_trie", struct prefix, u32, prefixes, MAX_PREFIXES, BPF_F_NO_PREALLOC);
PINNED("array", int, struct conn, conns, MAX_CONNS, 0);
PINNED("hash", u64, struct conn, more_conns, MAX_CONNS, BPF_F_NO_PREALLOC);
PINNED("array", int, u32, spills, MAX_CONNS / SPILL_PLACES, 0);
PINNED("lru_hash", struct flow_key, struct flow, flows, MAX_FLOWS, 0);
PINNED("lru_hash", struct client, struct affinity, affinities, MAX_AFFINITIES, 0);
PINNED("hash", u64, u32, skips, MAX_SKIPS, BPF_F_NO_PREALLOC);
PINNED("array", int, struct options, options, 1, 0);
PINNED("prog", int, int, again_connect4, 1, 0);
PINNED("prog", int, int, again_connect6, 1, 0);
PINNED("prog", int, int, again_sendmsg4, 1, 0);
PINNED("prog", int, int, again_sendmsg6, 1, 0);
PINNED("percpu_array", int, u64, reasons, REASON_COUNT, 0);
PINNED("array", int, struct meta, meta, 1, 0);
PINNED("array", int, struct about, about, 1, 0);

/* BCC's own macro knows no pins. */
struct events_table_t {
    int key;
    u32 leaf;
    int (*ringbuf_output)(void *, u64, u64);
    void *(*ringbuf_reserve)(u64);
    void (*ringbuf_discard)(void *, u64);
    void (*ringbuf_submit)(void *, u64);
    u32 max_entries;
};
__attribute__((section("maps/ringbuf:" PIN_DIR "/events")))
struct events_table_t events = {.max_entries = EVENT_BYTES};

static inline void count(u32 reason)
{
    int key = reason;
    u64 *n = reasons.lookup(&key);

    if (n)
        (*n)++;
}
