/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/connect4, cgroup/connect6: a connection to a VIP becomes one to a backend.
 */
static inline int translate_connect(struct bpf_sock_addr *ctx, int family, int again)
{
    struct target to = target_of(ctx, family);
    struct choice choice = {};
    int verdict;
    u64 cookie;

    if (to.proto != IPPROTO_TCP && to.proto != IPPROTO_UDP)
        return ALLOW;
    verdict = again ? choose_again(ctx, &to, &choice) : choose(ctx, &to, place_of(&to), &choice);
    if (verdict == AGAIN) {
        if (family == AF_INET)
            again_connect4.call(ctx, 0);
        else
            again_connect6.call(ctx, 0);
        verdict = refuse(&choice, REFUSED_TORN);  /* that was one look too many */
    }
    cookie = bpf_get_socket_cookie(ctx);
    if (verdict == REJECT) {
        /* A UDP socket stays connected to what it was connected to. */
        tell_choice(cookie, &to, &choice);
        return REFUSE;
    }
    forget(cookie);
    if (verdict == REDIRECT) {
        track(cookie, &to, &choice);
        tell_choice(cookie, &to, &choice);
        show(ctx, family, choice.addr, choice.port);
    }
    return ALLOW;
}

int connect4(struct bpf_sock_addr *ctx)
{
    return translate_connect(ctx, AF_INET, 0);
}

int connect6(struct bpf_sock_addr *ctx)
{
    return translate_connect(ctx, AF_INET6, 0);
}

int connect4_again(struct bpf_sock_addr *ctx)
{
    return translate_connect(ctx, AF_INET, 1);
}

int connect6_again(struct bpf_sock_addr *ctx)
{
    return translate_connect(ctx, AF_INET6, 1);
}
