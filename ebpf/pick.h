/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * The choice of a backend, the same for all hooks: two random slots of the best tier that has any,
 * and of the two the one with less to do for its weight. One that is ejected is taken only when
 * there is nothing else, whatever the tier: a draining backend accepts, an ejected one is known not to.
 */

/*
 * A program can be stopped anywhere, for as long as the scheduler likes. Meanwhile runs are replaced
 * and what was read belongs to somebody else: the element of a hash, a place in `vips`, slots, a
 * backend's id. So everything is copied and the copy is checked, a VIP by its address, a backend by
 * the VIP that it is a member of. When a check fails, all of it is read again.
 *
 * Hardly any choice needs a second look, so that is a program of its own, reached by a tail call: the
 * loops in it would cost the verifier a second in each hook. A third look is the same program again,
 * and so on: the kernel stops at 33.
 */
#define EJECT_FAILURES 5                  /* in a row */
#define EJECT_NS 30000000000ULL           /* then one connection tries it again */
#define SCAN_SLOTS 64                     /* of each tier, looked at for a backend that is not ejected */
#define SCAN_RANDOM 8                     /* so many of them anywhere in the tier */

struct choice {
    __be32 addr[4];
    __be16 port;
    u32 epoch;
    int id;
    u32 is_ejected;                       /* nothing better was at hand */
    u32 reason;                           /* why there is none */
    u64 netns;                            /* of the caller */
    u64 listening_until_ns;               /* of the options */
};

/* The program that is refused sees ECONNREFUSED, before Linux 5.18 EPERM. */
static inline int refuse(struct choice *choice, u32 reason)
{
    choice->reason = reason;
    choice->port = 0;                     /* it may be that of a backend that was lost again */
    count(reason);
#if HAVE_SET_RETVAL
    bpf_set_retval(-ECONNREFUSED);
#endif
    return REJECT;
}

/* A member of the VIP, and what speaks for it. */
struct candidate {
    int id;
    u32 is_ejected;
    u32 weight;
    u32 load;
};

/* The time, a few milliseconds late, for a tenth of the price. */
static inline u64 coarse_ns(void)
{
#if HAVE_COARSE_CLOCK
    return bpf_ktime_get_coarse_ns();
#else
    return bpf_ktime_get_ns();
#endif
}

static inline u32 below(u32 limit)
{
    return ((u64)bpf_get_prandom_u32() * limit) >> 32;
}

/* What a backend has to do. Nothing, if it was counted down once too often while its id changed hands. */
static inline u32 load_of(const struct backend_stats *stats)
{
    int load = stats->connecting + stats->active;

    return load < 0 ? 0 : load;
}

static inline u32 is_ejected(const struct backend_stats *stats)
{
    return stats->ejected_until_ns && bpf_ktime_get_ns() < stats->ejected_until_ns;
}

/* Read the backend in `slot`; 0 when it is not a member of the VIP. */
static inline int read_member(int slot, u32 vip_id, struct candidate *member)
{
    u32 *id = slots.lookup(&slot);
    struct backend_stats *stats;
    struct backend *backend;

    if (!id)
        return 0;
    member->id = *id;
    backend = backends.lookup(&member->id);
    stats = backend_stats.lookup(&member->id);
    if (!backend || !stats || backend->vip_id != vip_id)
        return 0;
    member->weight = backend->weight;
    member->load = load_of(stats);
    member->is_ejected = is_ejected(stats);
    return member->weight;
}

/* Whether `one` is to be preferred; not if they are equal. */
static inline int is_better(const struct candidate *one, const struct candidate *other)
{
    if (one->is_ejected != other->is_ejected)
        return other->is_ejected;
    return (u64)one->load * other->weight < (u64)other->load * one->weight;
}

/* Find a backend of the VIP that is not ejected, best tier first; 0, which is the id of none: there is
 * none in reach. The first slots that are looked at are random ones, which spreads the load; the
 * others are the first ones of the tier, where each backend has its turn before one has a second. */
static inline int find_healthy(const struct found *vip)
{
    u32 first = vip->run.base;

#pragma nounroll
    for (int tier = UP; tier <= DRAINING; tier++) {
        u32 size = tier == UP ? vip->run.up : tier == MAYBE ? vip->run.maybe : vip->run.draining;

#pragma nounroll
        for (u32 i = 0; i < SCAN_SLOTS && size; i++) {
            u32 at = i < SCAN_RANDOM ? below(size) : (i - SCAN_RANDOM) % size;
            struct backend_stats *stats;
            int slot = first + at, id;
            u32 *found = slots.lookup(&slot);

            if (!found)
                return 0;
            id = *found;
            stats = backend_stats.lookup(&id);
            if (stats && !is_ejected(stats))
                return id;
        }
        first += size;
    }
    return 0;
}

/* Where the backend is for who is in the network of this very host, if that is another address; 0
 * when it has been replaced meanwhile. */
static inline int take_inner(struct choice *choice)
{
    int key = 0;
    struct options *set = options.lookup(&key);
    struct inner *inner;
    u32 id = choice->id;

    if (!set || !set->host_netns || set->host_netns != choice->netns)
        return 1;
    inner = inners.lookup(&id);
    if (!inner)
        return 1;
    copy_address(choice->addr, inner->addr);
    choice->port = inner->port;
    return *(volatile u32 *)&inner->backend_id == id;
}

/* Copy backend `id`; 0 when the id has been freed meanwhile, or the container behind it replaced.
 * Freeing an id clears its vip_id and leaves the address as it is; only later, in another call, the
 * id is given away. So who sees the address of the next member sees that it was freed, too. */
static inline int take(struct choice *choice, int id, u32 vip_id)
{
    struct backend *backend = backends.lookup(&id);
    u64 *owner, before;

    if (!backend)
        return 0;
    owner = (u64 *)&backend->vip_id;
    before = *(volatile u64 *)owner;
    choice->addr[0] = *(volatile __be32 *)&backend->addr[0];
    choice->addr[1] = *(volatile __be32 *)&backend->addr[1];
    choice->addr[2] = *(volatile __be32 *)&backend->addr[2];
    choice->addr[3] = *(volatile __be32 *)&backend->addr[3];
    choice->port = *(volatile __be16 *)&backend->port;
    choice->epoch = before >> 32;
    choice->id = id;
    if (backend->flags & HAS_INNER && !take_inner(choice))
        return 0;
    return (u32)before == vip_id && *(volatile u64 *)owner == before;
}

/* Choose a backend of `vip`, which has slots; 0 when its run has been replaced. */
static inline int pick(const struct found *vip, struct choice *choice)
{
    u32 first = vip->run.base, size = vip->run.up, one, two;
    struct candidate a = {}, b = {};

    if (!size) {
        first += vip->run.up;
        size = vip->run.maybe;
    }
    if (!size) {
        first += vip->run.maybe;
        size = vip->run.draining;
    }
    one = below(size);
    if (!read_member(first + one, vip->id, &a))
        return 0;
    if (size > 1) {
        two = one + 1 + below(size - 1);
        if (two >= size)
            two -= size;
        if (!read_member(first + two, vip->id, &b))
            return 0;
        if (is_better(&b, &a))
            a = b;
    }
    choice->is_ejected = a.is_ejected;
    return take(choice, a.id, vip->id);
}

/* An ejected backend is taken when its time is over, or as the last resort. This one connection tries
 * it; where there are other backends, all others wait for what comes of it. */
static inline void begin_trial(const struct choice *choice)
{
    int id = choice->id;
    struct backend_stats *stats = backend_stats.lookup(&id);

    if (stats && stats->ejected_until_ns)
        stats->ejected_until_ns = bpf_ktime_get_ns() + EJECT_NS;
}

/* ---- a VIP whose clients keep their backend ------------------------------------------------------ */
static inline struct client client_of(const struct found *vip, const struct choice *choice)
{
    struct client client = {
        .cgroup = bpf_get_current_cgroup_id(),
        .netns = choice->netns,
        .vip_id = vip->id,
    };

    return client;
}

/* Whether `vip` gives out backends of `tier` now. Where maybe was taken for up, none is maybe. */
static inline int is_in_use(const struct run *run, u8 tier)
{
    if (tier == DRAINING)
        return !run->up && !run->maybe;
    return tier == UP || !run->up || !run->maybe;
}

/* Take the backend that the client had last; 0 when it is to have another one. */
static inline int take_last(const struct found *vip, struct choice *choice)
{
    struct client client = client_of(vip, choice);
    struct affinity *last = affinities.lookup(&client);
    struct backend_stats *stats;
    struct backend *backend;
    u64 now = coarse_ns();
    int id;

    if (!last || now - last->used_ns >= vip->affinity_seconds * 1000000000ULL)
        return 0;
    id = last->backend_id;
    backend = backends.lookup(&id);
    stats = backend_stats.lookup(&id);
    if (!backend || !stats || backend->epoch != last->epoch || !backend->weight)
        return 0;
    if (!is_in_use(&vip->run, backend->tier) || is_ejected(stats))
        return 0;
    last->used_ns = now;
    return take(choice, id, vip->id);
}

static inline void remember(const struct found *vip, const struct choice *choice)
{
    struct client client = client_of(vip, choice);
    struct affinity last = {
        .backend_id = choice->id,
        .epoch = choice->epoch,
        .used_ns = coarse_ns(),
    };

    affinities.update(&client, &last);
}

/* ---- the whole of it ----------------------------------------------------------------------------- */
static inline int settle_on(const struct found *vip, const struct choice *choice)
{
    begin_trial(choice);
    if (vip->affinity_seconds)
        remember(vip, choice);
    count(TRANSLATED);
    return REDIRECT;
}

/* A run was replaced while it was read. */
static inline int look_again(void)
{
    count(RETRIED);
    return AGAIN;
}

/* Until when somebody listens to events. */
static inline u64 listening_until_ns(void)
{
    int key = 0;
    struct options *set = options.lookup(&key);

    return set ? set->listening_until_ns : 0;
}

/* What to do with something for `to`, whose VIP is at `place`, or is none. REDIRECT: send it to
 * `choice`; AGAIN: choose_again() is to be asked. */
static inline int choose(struct bpf_sock_addr *ctx, const struct target *to, u32 *place,
                         struct choice *choice)
{
    struct found vip = {};
    struct options *set;
    int key = 0;

    if (!place && !is_for_vips(to))
        return PASS;
    set = options.lookup(&key);
    if (!set || (set->skips && is_skipped()))
        return PASS;
    choice->listening_until_ns = set->listening_until_ns;
    if (!place)
        return refuse(choice, REFUSED_UNKNOWN);
    if (!read_vip(*place, to, &vip))
        return look_again();
    if (!(vip.run.up | vip.run.maybe | vip.run.draining))
        return refuse(choice, REFUSED_EMPTY);
    choice->netns = bpf_get_netns_cookie(ctx);
    if (!(vip.affinity_seconds && take_last(&vip, choice)) && !pick(&vip, choice))
        return look_again();
    if (choice->is_ejected)
        return AGAIN;
    return settle_on(&vip, choice);
}

/* The same where the last look met a run that was being replaced, or nothing but ejected backends. */
static inline int choose_again(struct bpf_sock_addr *ctx, const struct target *to,
                               struct choice *choice)
{
    u32 *place = place_of(to);
    struct found vip = {};
    int id;

    choice->listening_until_ns = listening_until_ns();
    if (!place)
        return is_for_vips(to) ? refuse(choice, REFUSED_UNKNOWN) : PASS;
    if (!read_vip(*place, to, &vip))
        return look_again();
    if (!(vip.run.up | vip.run.maybe | vip.run.draining))
        return refuse(choice, REFUSED_EMPTY);
    id = find_healthy(&vip);              /* first: the verifier follows it for each way to it */
    choice->netns = bpf_get_netns_cookie(ctx);
    if (vip.affinity_seconds && take_last(&vip, choice))
        return settle_on(&vip, choice);
    if (!(id ? take(choice, id, vip.id) : pick(&vip, choice)))
        return look_again();
    if (!id && choice->is_ejected)
        count(LAST_RESORT);
    return settle_on(&vip, choice);
}
