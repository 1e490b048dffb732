/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * The address in front of a program, as a target and back: the same for every hook of a family.
 */
static inline struct target target4(const struct bpf_sock_addr *ctx)
{
    struct target to = {
        .addr = {0, 0, bpf_htonl(0xffff), ctx->user_ip4},
        .port = ctx->user_port,
        .proto = ctx->protocol,
    };

    return to;
}

static inline struct target target6(const struct bpf_sock_addr *ctx)
{
    struct target to = {
        .addr = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]},
        .port = ctx->user_port,
        .proto = ctx->protocol,
    };

    return to;
}

static inline void show4(struct bpf_sock_addr *ctx, const __be32 *addr, __be16 port)
{
    ctx->user_ip4 = addr[3];
    ctx->user_port = port;
}

static inline void show6(struct bpf_sock_addr *ctx, const __be32 *addr, __be16 port)
{
    ctx->user_ip6[0] = addr[0];
    ctx->user_ip6[1] = addr[1];
    ctx->user_ip6[2] = addr[2];
    ctx->user_ip6[3] = addr[3];
    ctx->user_port = port;
}
