/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * sock_ops: what became of a translated TCP connection. It feeds the choice (connecting, active,
 * ejected) and the counters (successes, failures, time to connect).
 */
#define PATIENCE_MS 400                   /* who gives up sooner has proved nothing */
#define ALL_TIMEOUTS 255                  /* the kernel sends no further SYN */

static inline u32 coarse_ms(void)
{
    return coarse_ns() / 1000000;
}

static inline u32 waited_ms(const struct conn *conn)
{
    return coarse_ms() - conn->started_ms;
}

static inline u32 waited_us(const struct conn *conn)
{
    return waited_ms(conn) * 1000;
}

static inline u32 log2_bucket(u64 us)
{
    u32 bucket = 0;

#pragma unroll
    for (int i = 0; i < CONNECT_BUCKETS - 1; i++)
        bucket += us >= (1ULL << i);
    return bucket;
}

/* The backend refused, or did not answer: that is `failures` in a row more. */
static inline void suspect(struct backend_stats *stats, u32 failures)
{
    u64 now = bpf_ktime_get_ns();

    stats->last_failure_ns = now;
    __sync_fetch_and_add(&stats->consecutive_failures, failures);
    if (stats->consecutive_failures < EJECT_FAILURES)
        return;
    if (!stats->ejected_until_ns)
        count(EJECTED);
    stats->ejected_until_ns = now + EJECT_NS;
}

static inline void on_connect(struct bpf_sock_ops *ctx, struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);

    conn->started_ms = coarse_ms();
    conn->phase = CONNECTING;
    if (stats) {
        __sync_fetch_and_add(&stats->attempts, 1);
        __sync_fetch_and_add(&stats->connecting, 1);
    }
    bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
                                       BPF_SOCK_OPS_RTO_CB_FLAG);
}

/* How long the handshake took: the round trip, unless a SYN was lost. */
static inline u32 connect_us(const struct bpf_sock_ops *ctx, const struct conn *conn)
{
    return conn->timeouts ? waited_us(conn) : ctx->srtt_us >> 3;
}

static inline void add_time(struct backend_stats *stats, u32 us)
{
    u32 bucket = log2_bucket(us);

    if (bucket < CONNECT_BUCKETS)
        __sync_fetch_and_add(&stats->connect_log2_us[bucket], 1);
}

static inline void on_established(struct conn *conn, u32 us, int is_timed)
{
    struct backend_stats *stats = stats_of(conn);

    conn->phase = ACTIVE;
    if (!stats)
        return;
    __sync_fetch_and_add(&stats->connecting, -1);
    __sync_fetch_and_add(&stats->active, 1);
    __sync_fetch_and_add(&stats->successes, 1);
    if (stats->consecutive_failures)
        stats->consecutive_failures = 0;
    if (stats->ejected_until_ns)
        stats->ejected_until_ns = 0;
    if (is_timed)
        add_time(stats, us);
}

/* A SYN was not answered within a second. That says more than a refusal, which may be that of a
 * program at its start; and where connections are spread thinly, few of them wait at once. */
static inline void on_timeout(struct conn *conn, u32 is_last)
{
    struct backend_stats *stats = stats_of(conn);

    if (is_last)
        conn->timeouts = ALL_TIMEOUTS;
    else if (conn->timeouts < ALL_TIMEOUTS - 1)
        conn->timeouts++;
    if (stats)
        suspect(stats, 2);
}

/* What the connection carried, as the kernel counts it: a SYN and a FIN are a byte each. */
static inline void add_traffic(struct bpf_sock_ops *ctx, struct backend_stats *stats)
{
    __sync_fetch_and_add(&stats->bytes_sent, ctx->bytes_acked);
    __sync_fetch_and_add(&stats->bytes_received, ctx->bytes_received);
    __sync_fetch_and_add(&stats->retransmits, ctx->total_retrans);
}

static inline void on_close(struct bpf_sock_ops *ctx, struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);
    int gave_up = conn->abandoned && waited_ms(conn) < PATIENCE_MS;

    if (!stats)
        return;
    add_traffic(ctx, stats);
    if (conn->phase == CONNECTING && !gave_up) {
        __sync_fetch_and_add(&stats->failures, 1);
        if (!conn->timeouts)
            suspect(stats, 1);
    }
}

/* How a connection has ended. */
static inline u8 end_of(const struct conn *conn)
{
    if (conn->phase == ACTIVE)
        return KIND_CLOSED;
    if (conn->timeouts == ALL_TIMEOUTS)
        return KIND_TIMED_OUT;
    return conn->abandoned ? KIND_GIVEN_UP : KIND_REFUSED;
}

/* Most of what the kernel tells is not for us: that is settled before anything is looked up. The
 * flag is that of on_connect(). */
static inline int concerns_us(struct bpf_sock_ops *ctx)
{
    switch (ctx->op) {
    case BPF_SOCK_OPS_TCP_CONNECT_CB:
        return 1;
    case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
        return ctx->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_RTO_CB_FLAG;
    case BPF_SOCK_OPS_RTO_CB:
        return ctx->state == BPF_TCP_SYN_SENT;
    case BPF_SOCK_OPS_STATE_CB:
        return ctx->args[1] == BPF_TCP_CLOSE;
    }
    return 0;
}

int sock_ops(struct bpf_sock_ops *ctx)
{
    u32 op = ctx->op, us = 0;
    struct conn *conn;
    u64 cookie;
    u8 kind;

    if (!concerns_us(ctx))
        return ALLOW;
    cookie = bpf_get_socket_cookie(ctx);
    conn = conn_of(cookie);
    if (!conn)
        return ALLOW;
    if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
        on_connect(ctx, conn);
        return ALLOW;
    }
    if (op == BPF_SOCK_OPS_STATE_CB) {
        /* While these programs were being put in the place of others, the answer may have gone by. */
        if (conn->phase == CONNECTING && ctx->args[0] != BPF_TCP_SYN_SENT)
            on_established(conn, 0, 0);
        kind = end_of(conn);
        us = kind == KIND_CLOSED ? 0 : waited_us(conn);
        on_close(ctx, conn);
    } else if (conn->phase != CONNECTING) {
        return ALLOW;
    } else if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
        kind = KIND_CONNECTED;
        us = connect_us(ctx, conn);
        on_established(conn, us, 1);
    } else {
        kind = KIND_UNANSWERED;
        us = waited_us(conn);
        on_timeout(conn, ctx->args[2]);
    }
    if (kind != KIND_UNANSWERED || !ctx->args[2])
        tell_outcome(kind, conn, us);
    if (op == BPF_SOCK_OPS_STATE_CB)
        leave(cookie, conn);
    return ALLOW;
}
