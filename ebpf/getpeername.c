/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/getpeername4, cgroup/getpeername6: the peer of a translated socket is its VIP.
 *
 * What is noted on the socket counts only while it is connected to the backend that was chosen:
 * no hook sees connect(AF_UNSPEC).
 */

int getpeername4(struct bpf_sock_addr *ctx)
{
    struct conn *conn = conns.sk_storage_get(ctx->sk, 0, 0);

    if (!conn || conn->backend_addr[3] != ctx->user_ip4 || conn->backend_port != (__be16)ctx->user_port)
        return ALLOW;
    ctx->user_ip4 = conn->vip_addr[3];
    ctx->user_port = conn->vip_port;
    return ALLOW;
}

int getpeername6(struct bpf_sock_addr *ctx)
{
    struct conn *conn = conns.sk_storage_get(ctx->sk, 0, 0);

    if (!conn || conn->backend_port != (__be16)ctx->user_port)
        return ALLOW;
    if (conn->backend_addr[0] != ctx->user_ip6[0] || conn->backend_addr[1] != ctx->user_ip6[1] ||
        conn->backend_addr[2] != ctx->user_ip6[2] || conn->backend_addr[3] != ctx->user_ip6[3])
        return ALLOW;
    ctx->user_ip6[0] = conn->vip_addr[0];
    ctx->user_ip6[1] = conn->vip_addr[1];
    ctx->user_ip6[2] = conn->vip_addr[2];
    ctx->user_ip6[3] = conn->vip_addr[3];
    ctx->user_port = conn->vip_port;
    return ALLOW;
}
