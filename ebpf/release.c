/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0) */
/*
 * cgroup/sock_release: a program closes a socket.
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
    if (conn->proto == IPPROTO_TCP)
        tell_outcome(KIND_NOT_SENT, conn, 0);
    leave(cookie, conn);
    return ALLOW;
}
