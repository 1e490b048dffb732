/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * sock_ops: what became of a translated TCP connection. It feeds the choice (connecting, active)
 * and the counters (successes, failures, time to connect).
 */

/* The counters of the socket's backend; NULL when its id has gone to another member since. */
static inline struct backend_stats *stats_of(const struct conn *conn)
{
    int id = conn->backend_id;
    struct backend *backend = backends.lookup(&id);

    if (!backend || backend->epoch != conn->epoch)
        return NULL;
    return backend_stats.lookup(&id);
}

static inline u32 log2_bucket(u64 us)
{
    u32 bucket = 0;

#pragma unroll
    for (int i = 0; i < CONNECT_BUCKETS - 1; i++)
        bucket += us >= (1ULL << i);
    return bucket;
}

static inline void on_connect(struct bpf_sock_ops *ctx, struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);

    conn->started_ns = bpf_ktime_get_ns();
    conn->phase = CONNECTING;
    if (stats)
        __sync_fetch_and_add(&stats->connecting, 1);
    bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static inline void on_established(struct conn *conn)
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
    stats->consecutive_failures = 0;
    bucket = log2_bucket((bpf_ktime_get_ns() - conn->started_ns) / 1000);
    if (bucket < CONNECT_BUCKETS)
        __sync_fetch_and_add(&stats->connect_log2_us[bucket], 1);
}

static inline void on_close(struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);
    u32 phase = conn->phase;

    conn->phase = CHOSEN;
    if (!stats)
        return;
    if (phase == ACTIVE)
        __sync_fetch_and_add(&stats->active, -1);
    if (phase != CONNECTING)
        return;
    __sync_fetch_and_add(&stats->connecting, -1);
    __sync_fetch_and_add(&stats->failures, 1);
    __sync_fetch_and_add(&stats->consecutive_failures, 1);
    stats->last_failure_ns = bpf_ktime_get_ns();
}

/* Most of what the kernel tells is not for us: that is settled before anything is looked up. */
static inline int concerns_us(struct bpf_sock_ops *ctx)
{
    if (ctx->op == BPF_SOCK_OPS_STATE_CB)
        return ctx->args[1] == BPF_TCP_CLOSE;
    return ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB || ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB;
}

int sock_ops(struct bpf_sock_ops *ctx)
{
    struct bpf_sock *sk = ctx->sk;
    struct conn *conn;

    if (!sk || !concerns_us(ctx))
        return ALLOW;
    conn = conns.sk_storage_get(sk, 0, 0);
    if (!conn)
        return ALLOW;
    if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
        on_connect(ctx, conn);
    else if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
        on_established(conn);
    else
        on_close(conn);
    return ALLOW;
}
