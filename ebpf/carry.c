/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * Programs that are attached nowhere. The agent runs them (BPF_PROG_TEST_RUN) where only a program can
 * change an entry that the others are changing: with what it asks for as the start of the packet. Each
 * returns 1 when it did that.
 */

/* The cookie of a socket that is gone without any of our programs having seen it go: it counts no
 * more. */
int settle(struct __sk_buff *skb)
{
    struct conn *conn;
    u64 cookie = 0;

    if (bpf_skb_load_bytes(skb, 0, &cookie, sizeof(cookie)))
        return 0;
    conn = conn_of(cookie);
    if (!conn)
        return 0;
    count(SETTLED);
    leave(cookie, conn);
    return 1;
}

/* ---- what programs with other maps have counted and given out ------------------------------------ */
static inline void put_later(u64 *moment, u64 other)
{
    if (other > *moment)
        *moment = other;
}

static inline void add_counters(struct backend_stats *stats, const struct backend_stats *added)
{
    __sync_fetch_and_add(&stats->connecting, added->connecting);
    __sync_fetch_and_add(&stats->active, added->active);
    __sync_fetch_and_add(&stats->consecutive_failures, added->consecutive_failures);
    __sync_fetch_and_add(&stats->attempts, added->attempts);
    __sync_fetch_and_add(&stats->successes, added->successes);
    __sync_fetch_and_add(&stats->failures, added->failures);
    __sync_fetch_and_add(&stats->bytes_sent, added->bytes_sent);
    __sync_fetch_and_add(&stats->bytes_received, added->bytes_received);
    __sync_fetch_and_add(&stats->retransmits, added->retransmits);
#pragma unroll
    for (int i = 0; i < CONNECT_BUCKETS; i++)
        __sync_fetch_and_add(&stats->connect_log2_us[i], added->connect_log2_us[i]);
    put_later(&stats->ejected_until_ns, added->ejected_until_ns);
    put_later(&stats->last_failure_ns, added->last_failure_ns);
}

/* A struct carried_stats: it is added to what is counted here. What is less than it was is added all
 * the same, as the numbers wrap around. Of two moments the later one stays. */
int carry_stats(struct __sk_buff *skb)
{
    struct carried_stats carried = {};
    struct backend_stats *stats;
    int id, reason;
    u64 *counted;

    if (bpf_skb_load_bytes(skb, 0, &carried, sizeof(carried)))
        return 0;
    id = carried.backend_id;
    stats = backend_stats.lookup(&id);
    if (id && !stats)
        return 0;
    if (id && stats)
        add_counters(stats, &carried.added);
    reason = carried.reason;
    counted = reasons.lookup(&reason);
    if (counted)
        *counted += carried.count;
    return 1;
}

/* A struct conn: what a socket was given, or what has become of that since. No gauge changes:
 * carry_stats has brought them. Nothing is done where the socket has been given something else
 * meanwhile, or where there is no room. */
int carry_conn(struct __sk_buff *skb)
{
    struct conn carried = {}, *conn;

    if (bpf_skb_load_bytes(skb, 0, &carried, sizeof(carried)) || !carried.cookie)
        return 0;
    conn = conn_of(carried.cookie);
    if (!conn)
        return keep(carried.cookie, &carried);
    if (conn->backend_id != carried.backend_id || conn->epoch != carried.epoch)
        return 0;
    conn->phase = carried.phase;
    conn->timeouts = carried.timeouts;
    conn->abandoned = carried.abandoned;
    conn->started_ms = carried.started_ms;
    return 1;
}

/* The cookie of a socket whose entry goes, with no gauge changed: it was carried here in vain. */
int drop_conn(struct __sk_buff *skb)
{
    u64 cookie = 0;

    if (bpf_skb_load_bytes(skb, 0, &cookie, sizeof(cookie)))
        return 0;
    return discard(cookie);
}
