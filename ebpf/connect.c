/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/connect4, cgroup/connect6: a connection to a VIP becomes one to a backend.
 */
static inline int connect_to(struct bpf_sock_addr *ctx, const struct target *to, int again,
                             struct choice *choice)
{
    u64 cookie = bpf_get_socket_cookie(ctx);
    int verdict = again ? choose_again(ctx, to, choice) : choose(ctx, to, place_of(to), choice);

    /* When it is refused, a UDP socket stays connected to what it was connected to. */
    if (verdict == PASS || verdict == REDIRECT)
        forget(cookie);
    if (verdict == REDIRECT)
        track(cookie, to, choice);
    return verdict;
}

static inline int translate_connect4(struct bpf_sock_addr *ctx, int again)
{
    struct target to = target4(ctx);
    struct choice choice = {};
    int verdict;

    if (to.proto != IPPROTO_TCP && to.proto != IPPROTO_UDP)
        return ALLOW;
    verdict = connect_to(ctx, &to, again, &choice);
    if (verdict == REDIRECT)
        show4(ctx, choice.addr, choice.port);
    if (verdict == AGAIN)
        again_connect4.call(ctx, 0);
    return verdict == PASS || verdict == REDIRECT ? ALLOW : REFUSE;
}

static inline int translate_connect6(struct bpf_sock_addr *ctx, int again)
{
    struct target to = target6(ctx);
    struct choice choice = {};
    int verdict;

    if (to.proto != IPPROTO_TCP && to.proto != IPPROTO_UDP)
        return ALLOW;
    verdict = connect_to(ctx, &to, again, &choice);
    if (verdict == REDIRECT)
        show6(ctx, choice.addr, choice.port);
    if (verdict == AGAIN)
        again_connect6.call(ctx, 0);
    return verdict == PASS || verdict == REDIRECT ? ALLOW : REFUSE;
}

int connect4(struct bpf_sock_addr *ctx)
{
    return translate_connect4(ctx, 0);
}

int connect6(struct bpf_sock_addr *ctx)
{
    return translate_connect6(ctx, 0);
}

int connect4_again(struct bpf_sock_addr *ctx)
{
    return translate_connect4(ctx, 1);
}

int connect6_again(struct bpf_sock_addr *ctx)
{
    return translate_connect6(ctx, 1);
}
