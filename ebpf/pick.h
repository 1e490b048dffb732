/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * The choice of a backend, the same for both families: two random slots of the best tier that has
 * any, and of the two the one with less to do for its weight.
 */

/*
 * A program can be stopped anywhere, for as long as the scheduler likes. Meanwhile runs are replaced
 * and what was read belongs to somebody else: the element of a hash, a place in `vips`, slots, a
 * backend's id. So everything is copied and the copy is checked, a VIP by its address, a backend by
 * the VIP that it is a member of. When a check fails, all of it is read again.
 */
#define PICK_TRIES 4

struct choice {
    __be32 addr[4];
    __be16 port;
    u32 epoch;
    int id;
};

static inline u32 below(u32 limit)
{
    return ((u64)bpf_get_prandom_u32() * limit) >> 32;
}

static inline u32 load_of(int id)
{
    struct backend_stats *stats = backend_stats.lookup(&id);

    return stats ? stats->connecting + stats->active : 0;
}

/* The backend in `slot` with its id in *id; NULL when it is not a member of the VIP. */
static inline struct backend *member_at(int slot, u32 vip_id, int *id)
{
    u32 *found = slots.lookup(&slot);
    struct backend *backend;

    if (!found)
        return NULL;
    *id = *found;
    backend = backends.lookup(id);
    if (!backend || backend->vip_id != vip_id || !backend->weight)
        return NULL;
    return backend;
}

/* Copy a member; 0 when its id has been freed meanwhile. Freeing an id clears its vip_id and leaves
 * the address as it is; only later, in another call, the id is given away. So who sees the address
 * of the next member sees that it was freed, too. */
static inline int take(struct choice *choice, struct backend *backend, u32 vip_id, int id)
{
    u64 *owner = (u64 *)&backend->vip_id;
    u64 before = *(volatile u64 *)owner;

    choice->addr[0] = *(volatile __be32 *)&backend->addr[0];
    choice->addr[1] = *(volatile __be32 *)&backend->addr[1];
    choice->addr[2] = *(volatile __be32 *)&backend->addr[2];
    choice->addr[3] = *(volatile __be32 *)&backend->addr[3];
    choice->port = *(volatile __be16 *)&backend->port;
    choice->epoch = before >> 32;
    choice->id = id;
    return (u32)before == vip_id && *(volatile u64 *)owner == before;
}

/* Choose a backend of `run`, which has slots; 0 when it has been replaced. */
static inline int pick(const struct run *run, u32 vip_id, struct choice *choice)
{
    u32 first = run->base, size = run->up, one, two;
    struct backend *a, *b;
    int id = 0, other = 0;

    if (!size) {
        first += run->up;
        size = run->maybe;
    }
    if (!size) {
        first += run->maybe;
        size = run->draining;
    }
    one = below(size);
    a = member_at(first + one, vip_id, &id);
    if (!a)
        return 0;
    if (size > 1) {
        two = one + 1 + below(size - 1);
        if (two >= size)
            two -= size;
        b = member_at(first + two, vip_id, &other);
        if (!b)
            return 0;
        if ((u64)load_of(other) * a->weight < (u64)load_of(id) * b->weight) {
            a = b;
            id = other;
        }
    }
    return take(choice, a, vip_id, id);
}

/* Note on `sk` what it was given, for getpeername and the counters. */
static inline struct conn *track(struct bpf_sock *sk, const struct choice *choice)
{
    struct conn *conn = conns.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

    if (!conn) {
        count(UNTRACKED);
        return NULL;
    }
    conn->backend_id = choice->id;
    conn->epoch = choice->epoch;
    conn->phase = CHOSEN;
    conn->backend_port = choice->port;
    conn->backend_addr[0] = choice->addr[0];
    conn->backend_addr[1] = choice->addr[1];
    conn->backend_addr[2] = choice->addr[2];
    conn->backend_addr[3] = choice->addr[3];
    return conn;
}
