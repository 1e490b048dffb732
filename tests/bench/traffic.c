// SPDX-License-Identifier: Apache-2.0
/*
 * The load of the benches: servers that say who they are, and clients that time connect().
 *
 *   traffic serve ADDRESS:PORT...        one server for each; its answer to a request is its place in this list
 *   traffic load COUNT TARGET...         COUNT connections, one after the other, each to a random target
 *   traffic watch GAP_US ADDRESS:PORT    connect until a given server answers, as often as it is asked
 *
 * TARGET is ADDRESS:PORT, or ADDRESS:PORT*N for N addresses from there on.
 *
 * `serve` writes the line "ready" when it listens. `load` starts when its standard input ends and
 * writes struct measured and then three arrays of COUNT u32: connect_ns, answer_ns (from the start
 * of connect() to the answer), server. `watch` reads numbers of servers, one a line, and answers
 * each with the CLOCK_MONOTONIC of the connect() that first reached it, in ns, and how many it took.
 *
 * A connection is connect, request, answer, close. The server closes first, as HTTP's servers do.
 * Any failure ends the program: a number that leaves failures out is none.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LOAD_SECONDS 120    /* a run that takes longer is ended by SIGALRM */
#define ACCEPTED (1u << 31) /* of the data of an epoll event: a connection, not a listener */

struct target {
    struct sockaddr_in first;
    uint32_t count;
};

struct measured { /* MEASURED in traffic.py */
    uint64_t started_ns;
    uint64_t ended_ns;
    uint64_t count;
};

static uint64_t monotonic_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct target parse_target(const char *text)
{
    struct target target = {.first.sin_family = AF_INET, .count = 1};
    char address[INET_ADDRSTRLEN];
    uint16_t port;

    if (sscanf(text, "%15[0-9.]:%hu*%u", address, &port, &target.count) < 2 ||
        inet_pton(AF_INET, address, &target.first.sin_addr) != 1)
        errx(2, "not ADDRESS:PORT[*N]: %s", text);
    target.first.sin_port = htons(port);
    return target;
}

/* ---- serve -------------------------------------------------------------------------------------- */
static void watch_fd(int poller, int fd, uint32_t server)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)server << 32 | (uint32_t)fd};

    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
        err(1, "epoll_ctl");
}

static void listen_on(int poller, const char *text, uint32_t server)
{
    struct target target = parse_target(text);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int on = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on); /* several of us, one for each core */
    if (bind(fd, (struct sockaddr *)&target.first, sizeof target.first) || listen(fd, SOMAXCONN))
        err(1, "listen on %s", text);
    watch_fd(poller, fd, server);
}

/* Answer and close when the request is there; 0: not yet. */
static int answer(int fd, uint32_t server)
{
    char request;
    ssize_t got = recv(fd, &request, sizeof request, 0);

    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got > 0)
        send(fd, &server, sizeof server, MSG_NOSIGNAL);
    close(fd);
    return 1;
}

static void accept_all(int poller, int listener, uint32_t server)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
        if (!answer(fd, server))
            watch_fd(poller, fd, server | ACCEPTED);
}

static void serve(int count, char **addresses)
{
    int poller = epoll_create1(0);
    struct epoll_event events[64];

    for (int i = 0; i < count; i++)
        listen_on(poller, addresses[i], (uint32_t)i);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(poller, events, 64, -1);

        for (int i = 0; i < ready; i++) {
            uint32_t server = (uint32_t)(events[i].data.u64 >> 32);
            int fd = (int)(uint32_t)events[i].data.u64;

            if (server & ACCEPTED)
                answer(fd, server & ~ACCEPTED);
            else
                accept_all(poller, fd, server);
        }
    }
}

/* ---- load --------------------------------------------------------------------------------------- */
struct connection {
    uint64_t started_ns; /* of connect() */
    uint32_t connect_ns;
    uint32_t answer_ns;
    uint32_t server;
};

static struct connection connect_once(const struct sockaddr_in *to)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct connection made;
    uint64_t connected_ns;
    char request = '?';

    if (fd < 0)
        err(1, "socket");
    made.started_ns = monotonic_ns();
    if (connect(fd, (const struct sockaddr *)to, sizeof *to))
        err(1, "connect");
    connected_ns = monotonic_ns();
    if (send(fd, &request, sizeof request, MSG_NOSIGNAL) != sizeof request)
        err(1, "send");
    if (recv(fd, &made.server, sizeof made.server, MSG_WAITALL) != sizeof made.server)
        err(1, "no answer");
    made.connect_ns = (uint32_t)(connected_ns - made.started_ns);
    made.answer_ns = (uint32_t)(monotonic_ns() - made.started_ns);
    close(fd);
    return made;
}

static uint32_t random_u32(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15; /* xorshift64*: the same targets in every run */

    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 0x2545f4914f6cdd1d) >> 32);
}

static uint32_t below(uint32_t limit)
{
    return (uint32_t)(((uint64_t)random_u32() * limit) >> 32);
}

static struct sockaddr_in random_target(const struct target *targets, int count)
{
    const struct target *target = &targets[below((uint32_t)count)];
    struct sockaddr_in to = target->first;

    to.sin_addr.s_addr = htonl(ntohl(to.sin_addr.s_addr) + below(target->count));
    return to;
}

static void *new_array(size_t count, size_t size)
{
    void *array = calloc(count, size);

    if (!array)
        err(1, "calloc");
    return array;
}

static void write_all(const void *data, size_t size, size_t count)
{
    if (fwrite(data, size, count, stdout) != count)
        err(1, "write");
}

static void load(uint32_t count, int target_count, char **texts)
{
    struct target *targets = new_array((size_t)target_count, sizeof *targets);
    uint32_t *connect_ns = new_array(count, sizeof *connect_ns);
    uint32_t *answer_ns = new_array(count, sizeof *answer_ns);
    uint32_t *server = new_array(count, sizeof *server);
    struct measured measured = {.count = count};
    char go;

    for (int i = 0; i < target_count; i++)
        targets[i] = parse_target(texts[i]);
    while (read(STDIN_FILENO, &go, sizeof go) > 0)
        ;
    alarm(LOAD_SECONDS);
    measured.started_ns = monotonic_ns();
    for (uint32_t i = 0; i < count; i++) {
        struct sockaddr_in to = random_target(targets, target_count);
        struct connection made = connect_once(&to);

        connect_ns[i] = made.connect_ns;
        answer_ns[i] = made.answer_ns;
        server[i] = made.server;
    }
    measured.ended_ns = monotonic_ns();
    write_all(&measured, sizeof measured, 1);
    write_all(connect_ns, sizeof *connect_ns, count);
    write_all(answer_ns, sizeof *answer_ns, count);
    write_all(server, sizeof *server, count);
    fflush(stdout);
}

/* ---- watch -------------------------------------------------------------------------------------- */
static void watch(uint32_t gap_us, const char *text)
{
    struct timespec gap = {.tv_sec = gap_us / 1000000, .tv_nsec = (gap_us % 1000000) * 1000};
    struct target target = parse_target(text);
    struct connection made;
    unsigned int wanted, tries;

    prctl(PR_SET_TIMERSLACK, 1); /* else a gap is 50 us longer */
    while (scanf("%u", &wanted) == 1) {
        alarm(LOAD_SECONDS);
        for (tries = 1; made = connect_once(&target.first), made.server != wanted; tries++)
            nanosleep(&gap, NULL);
        printf("%llu %u\n", (unsigned long long)made.started_ns, tries);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc >= 3 && !strcmp(argv[1], "serve"))
        serve(argc - 2, argv + 2);
    else if (argc >= 4 && !strcmp(argv[1], "load"))
        load((uint32_t)strtoul(argv[2], NULL, 10), argc - 3, argv + 3);
    else if (argc == 4 && !strcmp(argv[1], "watch"))
        watch((uint32_t)strtoul(argv[2], NULL, 10), argv[3]);
    else
        errx(2, "usage: traffic serve ADDRESS:PORT... | load COUNT TARGET... | watch GAP_US ADDRESS:PORT");
    return 0;
}
