/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/sock_release: a program closes a socket. And settle, which the agent runs for a socket that
 * is gone without any of our programs having seen it go.
 */

/* A TCP socket that began to connect is settled when it is closed, which may be long after this. */
int sock_release(struct bpf_sock *sk)
{
    u64 cookie = bpf_get_socket_cookie(sk);
    struct conn *conn = conn_of(cookie);

    if (!conn)
        return ALLOW;
    if (conn->proto == IPPROTO_TCP && conn->phase != CHOSEN) {
        conn->abandoned = 1;
        return ALLOW;
    }
    leave(cookie, conn);
    return ALLOW;
}

/* BPF_PROG_TEST_RUN with the cookie as the start of the packet. */
int settle(struct __sk_buff *skb)
{
    struct conn *conn;
    u64 cookie = 0;

    if (bpf_skb_load_bytes(skb, 0, &cookie, sizeof(cookie)))
        return 0;
    conn = conn_of(cookie);
    if (!conn)
        return 0;
    count(SETTLED);
    leave(cookie, conn);
    return 1;
}
