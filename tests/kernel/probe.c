// SPDX-License-Identifier: Apache-2.0
/*
 * Connects to VIPs all the time and writes down who answered. One process is all backends, too: it
 * has one connection at a time, so the listener that becomes ready is the one that was reached.
 *
 *   probe RECORDS LISTENER... -- TARGET...
 *
 * LISTENER and TARGET are ADDRESS:PORT, with an address of either family. It says "ready" when it
 * listens, connects to the targets in turn until standard input ends, and appends a struct record
 * for each connection to the file RECORDS.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 64
#define ACCEPT_MS 5000

struct record { /* RECORD in probing.py */
    uint64_t began_ns; /* CLOCK_MONOTONIC */
    uint64_t ended_ns;
    int32_t target;
    int32_t answer; /* which listener, or -errno */
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static socklen_t parse(char *text, struct sockaddr_storage *to)
{
    char *colon = strrchr(text, ':');
    struct sockaddr_in *four = (struct sockaddr_in *)to;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)to;

    memset(to, 0, sizeof(*to));
    *colon = '\0';
    if (strchr(text, ':')) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)atoi(colon + 1));
        if (inet_pton(AF_INET6, text, &six->sin6_addr) != 1)
            errx(1, "%s: no address", text);
        return sizeof(*six);
    }
    four->sin_family = AF_INET;
    four->sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, text, &four->sin_addr) != 1)
        errx(1, "%s: no address", text);
    return sizeof(*four);
}

static int listen_at(char *text)
{
    struct sockaddr_storage at;
    socklen_t size = parse(text, &at);
    int one = 1, fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
        bind(fd, (struct sockaddr *)&at, size) || listen(fd, 64))
        err(1, "listen at %s", text);
    return fd;
}

/* Close with a reset: no port is left waiting. */
static void end(int fd)
{
    struct linger reset = {.l_onoff = 1};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    close(fd);
}

/* Which listener has a connection, which is ended; -ETIMEDOUT: none. */
static int accept_one(struct pollfd *listeners, int count)
{
    if (poll(listeners, (nfds_t)count, ACCEPT_MS) < 1)
        return -ETIMEDOUT;
    for (int i = 0; i < count; i++) {
        if (listeners[i].revents) {
            int fd = accept(listeners[i].fd, NULL, NULL);

            if (fd < 0)
                return -errno;
            end(fd);
            return i;
        }
    }
    return -ETIMEDOUT;
}

static int probe(const struct sockaddr_storage *to, socklen_t size, struct pollfd *listeners, int count)
{
    int answer, fd = socket(to->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        err(1, "socket");
    if (connect(fd, (const struct sockaddr *)to, size))
        answer = -errno;
    else
        answer = accept_one(listeners, count);
    end(fd);
    return answer;
}

int main(int argc, char **argv)
{
    struct pollfd listeners[MOST], input = {.fd = STDIN_FILENO, .events = POLLIN};
    struct sockaddr_storage targets[MOST];
    socklen_t sizes[MOST];
    int backends = 0, count = 0, at = 2, records;

    if (argc < 5 || argc > MOST)
        errx(1, "probe RECORDS LISTENER... -- TARGET...");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    records = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (records < 0)
        err(1, "%s", argv[1]);
    for (; at < argc && strcmp(argv[at], "--"); at++)
        listeners[backends++] = (struct pollfd){.fd = listen_at(argv[at]), .events = POLLIN};
    for (at++; at < argc; at++, count++)
        sizes[count] = parse(argv[at], &targets[count]);
    if (write(STDOUT_FILENO, "ready\n", 6) != 6)
        err(1, "ready");
    for (int i = 0; poll(&input, 1, 0) == 0; i = (i + 1) % count) {
        struct record record = {.began_ns = now_ns(), .target = i};

        record.answer = probe(&targets[i], sizes[i], listeners, backends);
        record.ended_ns = now_ns();
        if (write(records, &record, sizeof(record)) != sizeof(record))
            err(1, "%s", argv[1]);
    }
    return 0;
}
