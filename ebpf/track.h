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

/* The socket has nothing to do with its backend any more. */
static inline void leave(struct conn *conn)
{
    struct backend_stats *stats = stats_of(conn);

    if (stats && conn->phase == CONNECTING)
        __sync_fetch_and_add(&stats->connecting, -1);
    if (stats && conn->phase == ACTIVE)
        __sync_fetch_and_add(&stats->active, -1);
}

/* What the socket was given before is void once it connects elsewhere. */
static inline void forget(u64 cookie)
{
    struct conn *conn = conns.lookup(&cookie);

    if (!conn)
        return;
    leave(conn);
    conns.delete(&cookie);
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
    };
    struct backend_stats *stats;

    copy_address(conn.vip_addr, to->addr);
    copy_address(conn.backend_addr, choice->addr);
    if (conns.update(&cookie, &conn)) {
        count(UNTRACKED);
        return;
    }
    if (conn.phase == ACTIVE && (stats = stats_of(&conn)))
        __sync_fetch_and_add(&stats->active, 1);
}

/* The backend of a connected socket in place of its VIP, seen from the program: 1 when `peer` and
 * `port` were that backend. They are what the socket is connected to, and no hook sees it end. */
static inline int show_vip(u64 cookie, __be32 *peer, __be16 *port)
{
    struct conn *conn = conns.lookup(&cookie);

    if (!conn || conn->backend_port != *port || !same_address(conn->backend_addr, peer))
        return 0;
    copy_address(peer, conn->vip_addr);
    *port = conn->vip_port;
    return 1;
}
