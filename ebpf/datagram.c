/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/sendmsg4, sendmsg6, recvmsg4, recvmsg6: datagrams that carry an address. What is sent to a
 * VIP goes to a backend, what comes from there comes from the VIP. A connected socket that sends
 * without an address, or receives without asking for one, meets none of these. Only one of AF_INET6
 * that is connected to ::ffff:a.b.c.d does: with the address of its backend.
 */

/* Whether the socket has a peer. As long as it has, the kernel lets it receive from nobody else. */
static inline int is_connected(const struct bpf_sock_addr *ctx)
{
    const struct bpf_sock *sk = ctx->sk;

    return sk && sk->state == BPF_TCP_ESTABLISHED;
}

/* Take the backend that the socket is connected to; 0: `to` is neither that, which may be a VIP of its
 * own, nor the VIP that it connected to. */
static inline int take_peer(u64 cookie, const struct target *to, struct choice *choice)
{
    struct conn *conn = conn_of(cookie);

    if (!conn)
        return 0;
    if (!(conn->vip_port == to->port && same_address(conn->vip_addr, to->addr)) &&
        !(conn->backend_port == to->port && same_address(conn->backend_addr, to->addr)))
        return 0;
    copy_address(choice->addr, conn->backend_addr);
    choice->port = conn->backend_port;
    return 1;
}

/* Take the backend that the socket's last datagram to `to` went to; 0: it is gone, or this is the
 * first. Only its id is kept: the container behind a port of this host may be another one now. */
static inline int resume(struct bpf_sock_addr *ctx, u64 cookie, const struct target *to,
                         struct choice *choice)
{
    struct flow_key key = {.cookie = cookie, .port = to->port, .direction = TO_VIP};
    struct backend *backend;
    struct flow *flow;
    int id;

    copy_address(key.addr, to->addr);
    flow = flows.lookup(&key);
    if (!flow)
        return 0;
    id = flow->backend_id;
    backend = backends.lookup(&id);
    if (!backend || !backend->vip_id)
        return 0;
    if (backend->flags & HAS_INNER)
        choice->netns = bpf_get_netns_cookie(ctx);
    return take(choice, id, backend->vip_id) && choice->epoch == flow->epoch &&
           flow->port == to->port && same_address(flow->addr, to->addr);
}

/* Note where the socket's datagrams to `to` go. */
static inline void note_way(u64 cookie, const struct target *to, const struct choice *choice)
{
    struct flow_key key = {.cookie = cookie, .port = to->port, .direction = TO_VIP};
    struct flow way = {.port = to->port, .backend_id = choice->id, .epoch = choice->epoch};

    copy_address(key.addr, to->addr);
    copy_address(way.addr, to->addr);
    flows.update(&key, &way);
}

/* Note that what comes from the backend is to come from `to`. Two VIPs may lead to one backend: what
 * the socket sent to last counts, and the entry may have been evicted. */
static inline void note_return(u64 cookie, const struct target *to, const struct choice *choice)
{
    struct flow_key key = {.cookie = cookie, .port = choice->port, .direction = FROM_BACKEND};
    struct flow back = {.port = to->port};
    struct flow *last;

    copy_address(key.addr, choice->addr);
    last = flows.lookup(&key);
    if (last && last->port == to->port && same_address(last->addr, to->addr))
        return;
    copy_address(back.addr, to->addr);
    flows.update(&key, &back);
}

/* The backend has one more socket that sends to it. */
static inline void add_attempt(const struct choice *choice)
{
    int id = choice->id;
    struct backend_stats *stats = backend_stats.lookup(&id);

    if (stats)
        __sync_fetch_and_add(&stats->attempts, 1);
}

/* Note that what comes from `to`, which is no VIP, is to come from there. */
static inline void forget_return(u64 cookie, const struct target *to)
{
    struct flow_key key = {.cookie = cookie, .port = to->port, .direction = FROM_BACKEND};

    copy_address(key.addr, to->addr);
    if (flows.lookup(&key))
        flows.delete(&key);
}

static inline int translate_sendmsg(struct bpf_sock_addr *ctx, int family, int again)
{
    struct target to = target_of(ctx, family);
    struct choice choice = {};
    int verdict;
    u64 cookie;
    u32 *place;

    if (to.proto != IPPROTO_UDP)
        return ALLOW;
    cookie = bpf_get_socket_cookie(ctx);
    if (again) {
        verdict = choose_again(ctx, &to, &choice);
    } else {
        if (is_connected(ctx) && take_peer(cookie, &to, &choice)) {
            show(ctx, family, choice.addr, choice.port);
            return ALLOW;
        }
        place = place_of(&to);
        if (place && resume(ctx, cookie, &to, &choice)) {
            note_return(cookie, &to, &choice);
            show(ctx, family, choice.addr, choice.port);
            return ALLOW;
        }
        verdict = choose(ctx, &to, place, &choice);
    }
    if (verdict == AGAIN) {
        if (family == AF_INET)
            again_sendmsg4.call(ctx, 0);
        else
            again_sendmsg6.call(ctx, 0);
        verdict = refuse(&choice, REFUSED_TORN);  /* that was one look too many */
    }
    if (verdict == PASS) {
        forget_return(cookie, &to);
        return ALLOW;
    }
    tell_choice(cookie, &to, &choice);
    if (verdict == REJECT)
        return REFUSE;
    note_way(cookie, &to, &choice);
    note_return(cookie, &to, &choice);
    add_attempt(&choice);
    show(ctx, family, choice.addr, choice.port);
    return ALLOW;
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
    return translate_sendmsg(ctx, AF_INET, 0);
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
    return translate_sendmsg(ctx, AF_INET6, 0);
}

int sendmsg4_again(struct bpf_sock_addr *ctx)
{
    return translate_sendmsg(ctx, AF_INET, 1);
}

int sendmsg6_again(struct bpf_sock_addr *ctx)
{
    return translate_sendmsg(ctx, AF_INET6, 1);
}

/* Make `from`, who sent a datagram, the VIP that the socket sent to; 0: it is as it is. What a
 * connected socket receives is from its peer, whatever it has sent to others meanwhile. */
static inline int receive_from(struct bpf_sock_addr *ctx, struct target *from)
{
    u64 cookie = bpf_get_socket_cookie(ctx);
    struct flow_key key = {.cookie = cookie, .port = from->port, .direction = FROM_BACKEND};
    struct flow *flow;

    if (is_connected(ctx))
        return show_vip(cookie, from->addr, &from->port);
    copy_address(key.addr, from->addr);
    flow = flows.lookup(&key);
    if (!flow)
        return 0;
    copy_address(from->addr, flow->addr);
    from->port = flow->port;
    return 1;
}

static inline int translate_recvmsg(struct bpf_sock_addr *ctx, int family)
{
    struct target from = target_of(ctx, family);

    if (from.proto == IPPROTO_UDP && receive_from(ctx, &from))
        show(ctx, family, from.addr, from.port);
    return ALLOW;
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
    return translate_recvmsg(ctx, AF_INET);
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
    return translate_recvmsg(ctx, AF_INET6);
}
