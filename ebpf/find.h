/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * Which VIP a program has in front of it, if any, and what to do where there is none.
 */
struct target {
    __be32 addr[4];                       /* IPv4-mapped for IPv4 */
    __be16 port;
    u8 proto;
};

/* A copy of what counts of a `struct vip`. */
struct found {
    struct run run;
    u32 id;
    u32 affinity_seconds;
};

enum verdict { PASS, REDIRECT, REJECT, AGAIN };

/* One comparison instead of three or four: the verifier follows each branch on its own. */
static inline int is_mapped(const __be32 *addr)
{
    return (addr[0] | addr[1] | (addr[2] ^ bpf_htonl(0xffff))) == 0;
}

static inline int same_address(const __be32 *one, const __be32 *other)
{
    return ((one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3])) == 0;
}

static inline void copy_address(__be32 *to, const __be32 *from)
{
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
    to[3] = from[3];
}

/* Where the VIP for `to` is in `vips`; NULL: there is none. An AF_INET6 socket that goes to
 * ::ffff:a.b.c.d meets only the programs for IPv6, so those look in both maps. */
static inline u32 *place_of(const struct target *to)
{
    struct vip4_key key4 = {};
    struct vip6_key key6 = {};

    if (is_mapped(to->addr)) {
        key4.addr = to->addr[3];
        key4.port = to->port;
        key4.proto = to->proto;
        return vips4.lookup(&key4);
    }
    copy_address(key6.addr, to->addr);
    key6.port = to->port;
    key6.proto = to->proto;
    return vips6.lookup(&key6);
}

/* Copy the VIP at `place`; 0 when it is not that of `to` any more. */
static inline int read_vip(int place, const struct target *to, struct found *found)
{
    struct vip *vip = vips.lookup(&place);
    u32 turn;

    if (!vip)
        return 0;
    turn = *(volatile u32 *)&vip->turn;
    if (turn & 1)
        found->run = *(volatile struct run *)&vip->runs[1];
    else
        found->run = *(volatile struct run *)&vip->runs[0];
    found->id = *(volatile u32 *)&vip->id;
    found->affinity_seconds = vip->affinity_seconds;
    return same_address(vip->addr, to->addr) && vip->port == to->port && vip->proto == to->proto &&
           *(volatile u32 *)&vip->turn == turn;
}

/* Whether the calling process is in a cgroup that is left alone, or below one. */
#define CGROUP_LEVELS 16

static inline int is_skipped(void)
{
#pragma nounroll
    for (int level = 0; level < CGROUP_LEVELS; level++) {
        u64 cgroup = bpf_get_current_ancestor_cgroup_id(level);

        if (!cgroup)
            break;
        if (skips.lookup(&cgroup))
            return 1;
    }
    return 0;
}

/* Whether `to` is refused where it is no VIP: its address is for VIPs alone. */
static inline int is_for_vips(const struct target *to)
{
    struct prefix key = {.bits = 128};
    u32 *owner;

    copy_address(key.addr, to->addr);
    owner = prefixes.lookup(&key);
    return owner && *owner == VIPS;
}
