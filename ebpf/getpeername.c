/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/getpeername4, cgroup/getpeername6: the peer of a translated socket is its VIP.
 */
int getpeername4(struct bpf_sock_addr *ctx)
{
    struct target peer = target4(ctx);

    if (show_vip(bpf_get_socket_cookie(ctx), peer.addr, &peer.port))
        show4(ctx, peer.addr, peer.port);
    return ALLOW;
}

int getpeername6(struct bpf_sock_addr *ctx)
{
    struct target peer = target6(ctx);

    if (show_vip(bpf_get_socket_cookie(ctx), peer.addr, &peer.port))
        show6(ctx, peer.addr, peer.port);
    return ALLOW;
}
