/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * sock_ops: what became of a translated TCP connection. It feeds the choice (connecting, active,
 * ejected) and the counters (successes, failures, time to connect).
 */
#define PATIENCE_MS 400                   /* who gives up sooner has proved nothing */

static inline u32 coarse_ms(void)
{
    return coarse_ns() / 1000000;
}

static inline u32 waited_ms(const struct conn *conn)
{
    return coarse_ms() - conn->started_ms;
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
    if (stats)
        __sync_fetch_and_add(&stats->connecting, 1);
    bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
                                       BPF_SOCK_OPS_RTO_CB_FLAG);
}

/* How long the handshake took: the round trip, unless a SYN was lost. */
static inline u64 connect_us(const struct bpf_sock_ops *ctx, const struct conn *conn)
{
    return conn->timeouts ? waited_ms(conn) * 1000ULL : ctx->srtt_us >> 3;
}

static inline void on_established(struct bpf_sock_ops *ctx, struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);
    u32 bucket;

    if (conn->phase != CONNECTING)
        return;
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
    bucket = log2_bucket(connect_us(ctx, conn));
    if (bucket < CONNECT_BUCKETS)
        __sync_fetch_and_add(&stats->connect_log2_us[bucket], 1);
}

/* A SYN was not answered within a second. That says more than a refusal, which may be that of a
 * program at its start; and where connections are spread thinly, few of them wait at once. */
static inline void on_timeout(struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);

    if (conn->phase != CONNECTING)
        return;
    if (conn->timeouts < 255)
        conn->timeouts++;
    if (stats)
        suspect(stats, 2);
}

static inline void on_close(u64 cookie, struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);
    int gave_up = conn->abandoned && waited_ms(conn) < PATIENCE_MS;

    if (stats && conn->phase == CONNECTING && !gave_up) {
        __sync_fetch_and_add(&stats->failures, 1);
        if (!conn->timeouts)
            suspect(stats, 1);
    }
    leave(cookie, conn);
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
    struct conn *conn;
    u64 cookie;

    if (!concerns_us(ctx))
        return ALLOW;
    cookie = bpf_get_socket_cookie(ctx);
    conn = conn_of(cookie);
    if (!conn)
        return ALLOW;
    switch (ctx->op) {
    case BPF_SOCK_OPS_TCP_CONNECT_CB:
        on_connect(ctx, conn);
        break;
    case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
        on_established(ctx, conn);
        break;
    case BPF_SOCK_OPS_RTO_CB:
        on_timeout(conn);
        break;
    default:
        on_close(cookie, conn);
    }
    return ALLOW;
}
