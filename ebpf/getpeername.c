/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/getpeername4, cgroup/getpeername6: the peer of a translated socket is its VIP.
 */
static inline int translate_getpeername(struct bpf_sock_addr *ctx, int family)
{
    struct target peer = target_of(ctx, family);

    if (show_vip(bpf_get_socket_cookie(ctx), peer.addr, &peer.port))
        show(ctx, family, peer.addr, peer.port);
    return ALLOW;
}

int getpeername4(struct bpf_sock_addr *ctx)
{
    return translate_getpeername(ctx, AF_INET);
}

int getpeername6(struct bpf_sock_addr *ctx)
{
    return translate_getpeername(ctx, AF_INET6);
}
