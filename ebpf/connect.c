/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/connect4, cgroup/connect6: a connection to a VIP becomes one to a backend.
 *
 * An AF_INET6 socket that connects to ::ffff:a.b.c.d meets only connect6, so that one looks in both
 * maps; where the family is known at compile time, as in connect4, the compiler drops the other.
 */

struct target {
    __be32 addr[4];                       /* IPv4-mapped for IPv4 */
    __be16 port;
    u8 proto;
};

enum verdict { PASS, REDIRECT, REJECT };

/* The program that is refused sees ECONNREFUSED, before Linux 5.18 EPERM. */
static inline int refuse(u32 reason)
{
    count(reason);
#if HAVE_SET_RETVAL
    bpf_set_retval(-ECONNREFUSED);
#endif
    return REJECT;
}

static inline int is_mapped(const __be32 *addr)
{
    return addr[0] == 0 && addr[1] == 0 && addr[2] == bpf_htonl(0xffff);
}

/* Where the VIP for `to` is in `vips`; NULL: there is none. */
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
    key6.addr[0] = to->addr[0];
    key6.addr[1] = to->addr[1];
    key6.addr[2] = to->addr[2];
    key6.addr[3] = to->addr[3];
    key6.port = to->port;
    key6.proto = to->proto;
    return vips6.lookup(&key6);
}

/* Copy the run in use and the id of the VIP at `place`; 0 when it is not that of `to` any more. */
static inline int read_vip(int place, const struct target *to, struct run *run, u32 *id)
{
    struct vip *vip = vips.lookup(&place);
    u32 turn;

    if (!vip)
        return 0;
    turn = *(volatile u32 *)&vip->turn;
    if (turn & 1)
        *run = *(volatile struct run *)&vip->runs[1];
    else
        *run = *(volatile struct run *)&vip->runs[0];
    *id = *(volatile u32 *)&vip->id;
    if (vip->addr[0] != to->addr[0] || vip->addr[1] != to->addr[1] ||
        vip->addr[2] != to->addr[2] || vip->addr[3] != to->addr[3] ||
        vip->port != to->port || vip->proto != to->proto)
        return 0;
    return *(volatile u32 *)&vip->turn == turn;
}

/* What to do with a connection to `to`; REDIRECT: to `choice`, which is noted on the socket. */
static inline int translate(struct bpf_sock_addr *ctx, const struct target *to, struct choice *choice)
{
    struct run run = {};
    struct conn *conn;
    int chosen = 0;
    u32 *place;
    u32 id = 0;

#pragma unroll
    for (int i = 0; i < PICK_TRIES; i++) {
        place = place_of(to);
        if (!place) {
            /* What the socket was given before is void once it connects elsewhere. */
            conns.sk_storage_delete(ctx->sk);
            return PASS;
        }
        if (read_vip(*place, to, &run, &id)) {
            if (!(run.up | run.maybe | run.draining))
                return refuse(REFUSED_EMPTY);
            chosen = pick(&run, id, choice);
        }
        if (chosen)
            break;
        count(RETRIED);
    }
    if (!chosen)
        return refuse(REFUSED_TORN);
    conn = track(ctx->sk, choice);
    if (conn) {
        conn->vip_addr[0] = to->addr[0];
        conn->vip_addr[1] = to->addr[1];
        conn->vip_addr[2] = to->addr[2];
        conn->vip_addr[3] = to->addr[3];
        conn->vip_port = to->port;
    }
    count(TRANSLATED);
    return REDIRECT;
}

int connect4(struct bpf_sock_addr *ctx)
{
    struct choice choice = {};
    struct target to = {};
    int verdict;

    if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
        return ALLOW;
    to.addr[2] = bpf_htonl(0xffff);
    to.addr[3] = ctx->user_ip4;
    to.port = ctx->user_port;
    to.proto = ctx->protocol;
    verdict = translate(ctx, &to, &choice);
    if (verdict == REDIRECT) {
        ctx->user_ip4 = choice.addr[3];
        ctx->user_port = choice.port;
    }
    return verdict == REJECT ? REFUSE : ALLOW;
}

int connect6(struct bpf_sock_addr *ctx)
{
    struct choice choice = {};
    struct target to = {};
    int verdict;

    if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
        return ALLOW;
    to.addr[0] = ctx->user_ip6[0];
    to.addr[1] = ctx->user_ip6[1];
    to.addr[2] = ctx->user_ip6[2];
    to.addr[3] = ctx->user_ip6[3];
    to.port = ctx->user_port;
    to.proto = ctx->protocol;
    verdict = translate(ctx, &to, &choice);
    if (verdict == REDIRECT) {
        ctx->user_ip6[0] = choice.addr[0];
        ctx->user_ip6[1] = choice.addr[1];
        ctx->user_ip6[2] = choice.addr[2];
        ctx->user_ip6[3] = choice.addr[3];
        ctx->user_port = choice.port;
    }
    return verdict == REJECT ? REFUSE : ALLOW;
}
