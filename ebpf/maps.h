/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * Every map, declared once. The loader puts this file in front of the programs and compiles all of
 * it as one text, because BCC rewrites map calls in the main text only.
 *
 * Given by the loader: PIN_DIR (a string), MAX_VIPS, MAX_SLOTS, MAX_BACKENDS, HAVE_SET_RETVAL.
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
    u32 flags;
};
_Static_assert(sizeof(struct vip) == 64, "vip: keep minuteman/dataplane/layout.py in step");

/* ---- slots, backends: a run is a piece of the slot array, a slot is the id of a backend -------- */
struct backend {                                                  /* "=16s2sBBIII" in layout.py */
    __be32 addr[4];
    __be16 port;
    u8 proto;
    u8 tier;
    u32 weight;                           /* 0: the id is free */
    u32 vip_id;                           /* a backend is a member of one VIP; 0: of none */
    u32 epoch;                            /* counts the members that have used this id */
};
_Static_assert(sizeof(struct backend) == 32, "backend: keep minuteman/dataplane/layout.py in step");

#define CONNECT_BUCKETS 20

struct backend_stats {                                           /* "=4I3Q20Q" in layout.py */
    u32 connecting;
    u32 active;
    u32 consecutive_failures;
    u32 zero;
    u64 successes;
    u64 failures;
    u64 last_failure_ns;                  /* bpf_ktime_get_ns() */
    u64 connect_log2_us[CONNECT_BUCKETS]; /* bucket i: less than 2^i microseconds; the last: all others */
};
_Static_assert(sizeof(struct backend_stats) == 200, "backend_stats: keep minuteman/dataplane/layout.py in step");

/* ---- conns: what a socket was given; lives and dies with the socket ---------------------------- */
enum phase { CHOSEN, CONNECTING, ACTIVE };

struct conn {                                                       /* "=16s16s2s2sIIIQ" in layout.py */
    __be32 vip_addr[4];
    __be32 backend_addr[4];
    __be16 vip_port;
    __be16 backend_port;
    u32 backend_id;
    u32 epoch;
    u32 phase;
    u64 started_ns;
};
_Static_assert(sizeof(struct conn) == 56, "conn: keep minuteman/dataplane/layout.py in step");

/* ---- reasons: how each decision of a program ended, counted per CPU ---------------------------- */
enum reason {                                                      /* REASONS in layout.py */
    TRANSLATED,
    REFUSED_EMPTY,                        /* the VIP has no backend */
    REFUSED_TORN,                         /* its run was replaced under every one of our tries */
    RETRIED,                              /* it was replaced under one of them */
    UNTRACKED,                            /* no memory for the socket's state: connected, not counted */
    REASON_COUNT,
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
PINNED("percpu_array", int, u64, reasons, REASON_COUNT, 0);
PINNED("array", int, struct meta, meta, 1, 0);

/* BCC's macro for this type cannot pin. */
struct conns_table_t {
    int key;
    struct conn leaf;
    void *(*sk_storage_get)(void *, void *, int);
    int (*sk_storage_delete)(void *);
    u32 flags;
};
__attribute__((section("maps/sk_storage:" PIN_DIR "/conns")))
struct conns_table_t conns = { .flags = BPF_F_NO_PREALLOC };
BPF_ANNOTATE_KV_PAIR(conns, int, struct conn);

static inline void count(u32 reason)
{
    int key = reason;
    u64 *n = reasons.lookup(&key);

    if (n)
        (*n)++;
}
