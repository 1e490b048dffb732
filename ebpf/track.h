/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * What a socket was given, and what its backend has to do for it.
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

/* Where a cookie's entry is, unless its place was taken. */
static inline struct conn *place_for(u64 cookie)
{
    int place = cookie & (MAX_CONNS - 1);

    return conns.lookup(&place);
}

/* How many entries of these and neighbouring places are in `more_conns`. */
static inline u32 *spills_of(u64 cookie)
{
    int group = (cookie & (MAX_CONNS - 1)) / SPILL_PLACES;

    return spills.lookup(&group);
}

/* What the socket was given; NULL: nothing, as far as is known. */
static inline struct conn *conn_of(u64 cookie)
{
    struct conn *conn = place_for(cookie);
    u32 *spilled;

    if (conn && conn->cookie == cookie)
        return conn;
    spilled = spills_of(cookie);
    return spilled && *spilled ? more_conns.lookup(&cookie) : NULL;
}

/* Keep what a socket without an entry was given; 0: there is no room. */
static inline int keep(u64 cookie, struct conn *conn)
{
    struct conn *place = place_for(cookie);
    u32 *spilled;

#if HAVE_CMPXCHG
    if (place && __sync_val_compare_and_swap(&place->cookie, 0, cookie) == 0) {
        *place = *conn;
        return 1;
    }
#endif
    spilled = spills_of(cookie);
    if (!spilled)
        return 0;
    __sync_fetch_and_add(spilled, 1);
    if (!more_conns.update(&cookie, conn))
        return 1;
    __sync_fetch_and_add(spilled, -1);
    return 0;
}

/* Take the socket's entry away; 0: somebody else did. */
static inline int discard(u64 cookie)
{
    struct conn *place = place_for(cookie);
    u32 *spilled;

#if HAVE_CMPXCHG
    if (place && place->cookie == cookie)
        return __sync_val_compare_and_swap(&place->cookie, cookie, 0) == cookie;
#endif
    if (more_conns.delete(&cookie))
        return 0;
    spilled = spills_of(cookie);
    if (spilled)
        __sync_fetch_and_add(spilled, -1);
    return 1;
}

/* The socket has nothing to do with its backend any more. Who takes the entry away counts it down,
 * and nobody else: the sweep may come while the socket ends. */
static inline void leave(u64 cookie, const struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);
    u8 phase = conn->phase;

    if (!discard(cookie))
        return;
    if (stats && phase == CONNECTING)
        __sync_fetch_and_add(&stats->connecting, -1);
    if (stats && phase == ACTIVE)
        __sync_fetch_and_add(&stats->active, -1);
}

/* What the socket was given before is void once it connects elsewhere. */
static inline void forget(u64 cookie)
{
    struct conn *conn = conn_of(cookie);

    if (conn)
        leave(cookie, conn);
}

/* Note what a socket that connects to `to` was given. UDP has no handshake: it is connected now. */
static inline void track(u64 cookie, const struct target *to, const struct choice *choice)
{
    struct conn conn = {
        .vip_port = to->port,
        .backend_port = choice->port,
        .backend_id = choice->id,
        .epoch = choice->epoch,
        .proto = to->proto,
        .phase = to->proto == IPPROTO_UDP ? ACTIVE : CHOSEN,
        .netns = choice->netns,
        .cookie = cookie,
    };
    struct backend_stats *stats;

    copy_address(conn.vip_addr, to->addr);
    copy_address(conn.backend_addr, choice->addr);
    if (!keep(cookie, &conn)) {
        count(UNTRACKED);
        return;
    }
    if (conn.phase == ACTIVE && (stats = stats_of(&conn))) {
        __sync_fetch_and_add(&stats->attempts, 1);
        __sync_fetch_and_add(&stats->active, 1);
    }
}

/* The backend of a connected socket in place of its VIP, seen from the program: 1 when `peer` and
 * `port` were that backend. They are what the socket is connected to, and no hook sees it end. */
static inline int show_vip(u64 cookie, __be32 *peer, __be16 *port)
{
    struct conn *conn = conn_of(cookie);

    if (!conn || conn->backend_port != *port || !same_address(conn->backend_addr, peer))
        return 0;
    copy_address(peer, conn->vip_addr);
    *port = conn->vip_port;
    return 1;
}
