/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * Telling who listens what became of a connection. Nobody is woken up for it: the listener looks now
 * and then, and connect() does not pay for it.
 */
static inline int is_heard(u64 until_ns)
{
    return until_ns && coarse_ns() < until_ns;
}

/* An event of which kind, process and addresses are to be filled in; NULL: there is no room. */
static inline struct event *new_event(u64 cookie, u8 proto)
{
    struct event *event = events.ringbuf_reserve(sizeof(struct event));

    if (!event) {
        count(EVENT_LOST);
        return NULL;
    }
    event->time_ns = bpf_ktime_get_ns();
    event->cookie = cookie;
    event->proto = proto;
    event->zero = 0;
    return event;
}

static inline void note_nobody(struct event *event)
{
    event->cgroup = 0;
    event->pid = 0;
    *(u64 *)&event->command[0] = 0;
    *(u64 *)&event->command[8] = 0;
}

/* Who calls connect() or sendto(). */
static inline void note_caller(struct event *event)
{
    note_nobody(event);
    event->cgroup = bpf_get_current_cgroup_id();
#if HAVE_PROCESS
    event->pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(event->command, sizeof(event->command));
#endif
}

/* What was chosen for something for `to`, or why nothing was. */
static inline void tell_choice(u64 cookie, const struct target *to, const struct choice *choice)
{
    struct event *event;

    if (!is_heard(choice->listening_until_ns))
        return;
    event = new_event(cookie, to->proto);
    if (!event)
        return;
    event->kind = choice->reason;
    event->waited_us = 0;
    note_caller(event);
    copy_address(event->vip_addr, to->addr);
    event->vip_port = to->port;
    copy_address(event->backend_addr, choice->addr);
    event->backend_port = choice->port;
    events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

/* What became of a TCP connection since. It need not be its owner who runs now. */
static inline void tell_outcome(u8 kind, const struct conn *conn, u32 waited_us)
{
    struct event *event;

    if (!is_heard(listening_until_ns()))
        return;
    event = new_event(conn->cookie, conn->proto);
    if (!event)
        return;
    event->kind = kind;
    event->waited_us = waited_us;
    note_nobody(event);
    copy_address(event->vip_addr, conn->vip_addr);
    event->vip_port = conn->vip_port;
    copy_address(event->backend_addr, conn->backend_addr);
    event->backend_port = conn->backend_port;
    events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}
