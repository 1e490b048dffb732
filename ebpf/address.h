/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * The address in front of a program, as a target and back. `family` is that of the hook, known when
 * this is compiled: a program may only touch the fields of its own.
 */
static inline struct target target_of(const struct bpf_sock_addr *ctx, int family)
{
    struct target to = {.port = ctx->user_port, .proto = ctx->protocol};

    if (family == AF_INET) {
        to.addr[2] = bpf_htonl(0xffff);
        to.addr[3] = ctx->user_ip4;
    } else {
        to.addr[0] = ctx->user_ip6[0];
        to.addr[1] = ctx->user_ip6[1];
        to.addr[2] = ctx->user_ip6[2];
        to.addr[3] = ctx->user_ip6[3];
    }
    return to;
}

static inline void show(struct bpf_sock_addr *ctx, int family, const __be32 *addr, __be16 port)
{
    if (family == AF_INET) {
        ctx->user_ip4 = addr[3];
    } else {
        ctx->user_ip6[0] = addr[0];
        ctx->user_ip6[1] = addr[1];
        ctx->user_ip6[2] = addr[2];
        ctx->user_ip6[3] = addr[3];
    }
    ctx->user_port = port;
}
