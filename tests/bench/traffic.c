// SPDX-License-Identifier: Apache-2.0
/*
 * The load of the benches: servers that say who they are, and clients that measure.
 *
 *   traffic serve ADDRESS:PORT...           a server at each, for connections and for datagrams; its answer to a
 *                                           request is its place in this list
 *   traffic attend US SERVER ADDRESS:PORT   one that takes US for each connection, one after the other, and
 *                                           answers SERVER
 *
 *   traffic connect SEED COUNT TARGET...    COUNT connections, one after the other, each to a random target
 *   traffic pace RATE SEED COUNT TARGET...  the same, RATE of them a second, as far as that can be kept up with
 *   traffic hold SEED COUNT TARGET...       so many, which stay open until standard input ends; fewer, when
 *                                           there is no port left for one more
 *   traffic ask SEED COUNT TARGET...        COUNT datagrams of one socket to one target, each answered
 *   traffic ask-connected SEED COUNT ...    the same after connect()
 *   traffic stream SEED MS TARGET           one connection that sends as much as it can for so long
 *   traffic watch GAP_US ADDRESS:PORT       connect until a given server answers, as often as it is asked
 *
 * TARGET is ADDRESS:PORT, or ADDRESS:PORT*N for N addresses from there on. Clients with the same
 * SEED choose the same targets.
 *
 * Servers write the line "ready" when they listen. Clients but `watch` start when they read a line,
 * and write struct measured and then, but for `stream`, four arrays of `count` u32: call_ns (the
 * call that names the server: connect(), or the sending of a datagram), answer_ns (from its start to
 * the answer), server, started_us (of that call, since started_ns). `watch` reads numbers of servers, one a line, and answers each with the
 * CLOCK_MONOTONIC of the connect() that first reached it, in ns, and how many it took.
 *
 * The first byte of a request says what is to be done with the connection, see enum request. The
 * server closes first, as HTTP's servers do, but for one that is held. Any failure ends the program:
 * a number that leaves failures out is none.
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LOAD_SECONDS 120    /* a run that takes longer is ended by SIGALRM */
#define ANSWER_SECONDS 5    /* a datagram without an answer for so long is lost */
#define BLOCK (128u << 10)  /* of one send() or recv() of a stream */
#define ACCEPTED (1u << 31) /* of the data of an epoll event: a connection, */
#define DATAGRAM (1u << 30) /* a socket for datagrams; else a listener */

enum request {
    ONCE = '?',   /* answer and close */
    HOLD = '=',   /* answer, and keep it open until the client closes it */
    STREAM = '>', /* take everything, close when it ends */
};

struct target {
    struct sockaddr_in first;
    uint32_t count;
};

struct measured { /* MEASURED in traffic.py */
    uint64_t started_ns;
    uint64_t ended_ns;
    uint64_t count; /* of `stream`: bytes */
};

static uint64_t monotonic_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t number(const char *text)
{
    return (uint32_t)strtoul(text, NULL, 10);
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

static void *new_array(size_t count, size_t size)
{
    void *array = calloc(count, size);

    if (!array)
        err(1, "calloc");
    return array;
}

/* As many descriptors as this process may ever have. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit))
        err(1, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit))
        err(1, "setrlimit");
}

/* ---- serve -------------------------------------------------------------------------------------- */
static void watch_fd(int poller, int fd, uint32_t server)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)server << 32 | (uint32_t)fd};

    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
        err(1, "epoll_ctl");
}

/* A socket at ADDRESS:PORT, which others may share: several of us, one for each core. */
static int bound_socket(int type, const char *text)
{
    struct target target = parse_target(text);
    int fd = socket(AF_INET, type, 0);
    int on = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&target.first, sizeof target.first))
        err(1, "bind to %s", text);
    return fd;
}

static int listen_at(int type, const char *text)
{
    int fd = bound_socket(type, text);

    if (listen(fd, SOMAXCONN))
        err(1, "listen at %s", text);
    return fd;
}

static void say_ready(void)
{
    puts("ready");
    fflush(stdout);
}

/* Do what is asked for on a connection; 0: it is not over. */
static int answer(int fd, uint32_t server)
{
    static char request[BLOCK];
    ssize_t got = recv(fd, request, sizeof request, 0);

    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got > 0 && request[0] == STREAM)
        return 0;
    if (got > 0)
        send(fd, &server, sizeof server, MSG_NOSIGNAL);
    if (got > 0 && request[0] == HOLD)
        return 0;
    close(fd);
    return 1;
}

static void accept_all(int poller, int listener, uint32_t server)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
        if (!answer(fd, server))
            watch_fd(poller, fd, server | ACCEPTED);
    if (errno != EAGAIN)
        err(1, "accept");
}

static void answer_datagrams(int fd, uint32_t server)
{
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    char request;

    while (recvfrom(fd, &request, sizeof request, 0, (struct sockaddr *)&from, &size) >= 0)
        sendto(fd, &server, sizeof server, 0, (struct sockaddr *)&from, size);
}

static void serve(int count, char **addresses)
{
    int poller = epoll_create1(0);
    struct epoll_event events[64];

    for (int i = 0; i < count; i++) {
        watch_fd(poller, listen_at(SOCK_STREAM | SOCK_NONBLOCK, addresses[i]), (uint32_t)i);
        watch_fd(poller, bound_socket(SOCK_DGRAM | SOCK_NONBLOCK, addresses[i]), (uint32_t)i | DATAGRAM);
    }
    say_ready();
    for (;;) {
        int ready = epoll_wait(poller, events, 64, -1);

        for (int i = 0; i < ready; i++) {
            uint32_t server = (uint32_t)(events[i].data.u64 >> 32);
            int fd = (int)(uint32_t)events[i].data.u64;

            if (server & ACCEPTED)
                answer(fd, server & ~ACCEPTED);
            else if (server & DATAGRAM)
                answer_datagrams(fd, server & ~DATAGRAM);
            else
                accept_all(poller, fd, server);
        }
    }
}

/* ---- attend ------------------------------------------------------------------------------------- */
static void attend(uint32_t us, uint32_t server, const char *text)
{
    struct timespec work = {.tv_sec = us / 1000000, .tv_nsec = (us % 1000000) * 1000};
    int listener = listen_at(SOCK_STREAM, text);
    char request;
    int fd;

    prctl(PR_SET_TIMERSLACK, 1); /* else it takes 50 us more */
    say_ready();
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        if (recv(fd, &request, sizeof request, 0) > 0) {
            nanosleep(&work, NULL);
            send(fd, &server, sizeof server, MSG_NOSIGNAL);
        }
        close(fd);
    }
    err(1, "accept");
}

/* ---- what clients share ------------------------------------------------------------------------- */
struct client {
    uint64_t random; /* xorshift64* */
    uint32_t count;
    int target_count;
    struct target *targets;
    struct sockaddr_in asked; /* of `ask`: by one socket, */
    int asker;
    int is_connected; /* which then needs no address any more */
    uint64_t gap_ns; /* of `pace`: between two connections; */
    uint64_t due_ns; /* when the next one is due */
};

struct sample {
    uint64_t started_ns; /* of the call that names the server */
    uint32_t call_ns;
    uint32_t answer_ns;
    uint32_t server;
};

static struct client new_client(const char *seed, const char *count, int target_count, char **texts)
{
    struct client client = {
        .random = 0x9e3779b97f4a7c15u * (2ull * number(seed) + 1),
        .count = number(count),
        .target_count = target_count,
        .targets = new_array((size_t)target_count, sizeof *client.targets),
    };

    for (int i = 0; i < target_count; i++)
        client.targets[i] = parse_target(texts[i]);
    return client;
}

static uint32_t below(struct client *client, uint32_t limit)
{
    uint64_t state = client->random;

    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    client->random = state;
    return (uint32_t)((((state * 0x2545f4914f6cdd1d) >> 32) * limit) >> 32);
}

static struct sockaddr_in random_target(struct client *client)
{
    const struct target *target = &client->targets[below(client, (uint32_t)client->target_count)];
    struct sockaddr_in to = target->first;

    to.sin_addr.s_addr = htonl(ntohl(to.sin_addr.s_addr) + below(client, target->count));
    return to;
}

static void wait_for_line(void)
{
    int c;

    while ((c = getchar()) != '\n')
        if (c == EOF)
            exit(0);
    alarm(LOAD_SECONDS);
}

static void wait_for_end_of_input(void)
{
    while (getchar() != EOF)
        ;
}

static void write_all(const void *data, size_t size, size_t count)
{
    if (fwrite(data, size, count, stdout) != count)
        err(1, "write");
}

/* Have `take` make samples, until there are `count` or it has no further one, and write them. */
static void measure(struct client *client, int (*take)(struct client *, struct sample *))
{
    uint32_t *call_ns = new_array(client->count, sizeof *call_ns);
    uint32_t *answer_ns = new_array(client->count, sizeof *answer_ns);
    uint32_t *server = new_array(client->count, sizeof *server);
    uint32_t *started_us = new_array(client->count, sizeof *started_us);
    struct measured measured = {};
    struct sample sample;
    uint32_t i;

    wait_for_line();
    measured.started_ns = monotonic_ns();
    for (i = 0; i < client->count && take(client, &sample); i++) {
        call_ns[i] = sample.call_ns;
        answer_ns[i] = sample.answer_ns;
        server[i] = sample.server;
        started_us[i] = (uint32_t)((sample.started_ns - measured.started_ns) / 1000);
    }
    measured.ended_ns = monotonic_ns();
    measured.count = i;
    write_all(&measured, sizeof measured, 1);
    write_all(call_ns, sizeof *call_ns, i);
    write_all(answer_ns, sizeof *answer_ns, i);
    write_all(server, sizeof *server, i);
    write_all(started_us, sizeof *started_us, i);
    fflush(stdout);
}

/* ---- connect, hold ------------------------------------------------------------------------------ */
/* A connection with its request answered; -1: no port is left for it. */
static int open_connection(const struct sockaddr_in *to, enum request wanted, struct sample *sample)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    uint64_t connected_ns;
    char request = (char)wanted;

    if (fd < 0)
        err(1, "socket");
    sample->started_ns = monotonic_ns();
    if (connect(fd, (const struct sockaddr *)to, sizeof *to)) {
        if (errno != EADDRNOTAVAIL)
            err(1, "connect");
        close(fd);
        return -1;
    }
    connected_ns = monotonic_ns();
    if (send(fd, &request, sizeof request, MSG_NOSIGNAL) != sizeof request)
        err(1, "send");
    if (recv(fd, &sample->server, sizeof sample->server, MSG_WAITALL) != sizeof sample->server)
        err(1, "no answer");
    sample->call_ns = (uint32_t)(connected_ns - sample->started_ns);
    sample->answer_ns = (uint32_t)(monotonic_ns() - sample->started_ns);
    return fd;
}

static void connect_once(const struct sockaddr_in *to, struct sample *sample)
{
    int fd = open_connection(to, ONCE, sample);

    if (fd < 0)
        errx(1, "no port is left");
    close(fd);
}

static int take_connection(struct client *client, struct sample *sample)
{
    struct sockaddr_in to = random_target(client);

    connect_once(&to, sample);
    return 1;
}

static int take_paced(struct client *client, struct sample *sample)
{
    uint64_t due_ns = client->due_ns ? client->due_ns : monotonic_ns();
    struct timespec due = {.tv_sec = due_ns / 1000000000u, .tv_nsec = due_ns % 1000000000u};

    client->due_ns = due_ns + client->gap_ns;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    return take_connection(client, sample);
}

static int take_held(struct client *client, struct sample *sample)
{
    struct sockaddr_in to = random_target(client);

    return open_connection(&to, HOLD, sample) >= 0;
}

/* ---- ask ---------------------------------------------------------------------------------------- */
static void open_asker(struct client *client, int connected)
{
    struct timeval patience = {.tv_sec = ANSWER_SECONDS};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    client->asked = random_target(client);
    client->asker = fd;
    client->is_connected = connected;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience))
        err(1, "setsockopt");
    if (connected && connect(fd, (struct sockaddr *)&client->asked, sizeof client->asked))
        err(1, "connect");
}

static ssize_t send_question(struct client *client)
{
    char request = ONCE;

    if (client->is_connected)
        return send(client->asker, &request, sizeof request, 0);
    return sendto(client->asker, &request, sizeof request, 0, (struct sockaddr *)&client->asked,
                  sizeof client->asked);
}

/* The answer must come from where the question went, as the client knows it. */
static ssize_t receive_answer(struct client *client, uint32_t *server)
{
    const struct sockaddr_in *asked = &client->asked;
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t got;

    if (client->is_connected)
        return recv(client->asker, server, sizeof *server, 0);
    got = recvfrom(client->asker, server, sizeof *server, 0, (struct sockaddr *)&from, &size);
    if (got >= 0 && (from.sin_addr.s_addr != asked->sin_addr.s_addr || from.sin_port != asked->sin_port))
        errx(1, "an answer from %s:%u", inet_ntoa(from.sin_addr), ntohs(from.sin_port));
    return got;
}

static int take_answer(struct client *client, struct sample *sample)
{
    uint64_t sent_ns;

    sample->started_ns = monotonic_ns();
    if (send_question(client) != 1)
        err(1, "send");
    sent_ns = monotonic_ns();
    if (receive_answer(client, &sample->server) != sizeof sample->server)
        err(1, "no answer");
    sample->call_ns = (uint32_t)(sent_ns - sample->started_ns);
    sample->answer_ns = (uint32_t)(monotonic_ns() - sample->started_ns);
    return 1;
}

/* ---- stream ------------------------------------------------------------------------------------- */
static void stream(struct client *client)
{
    static char block[BLOCK];
    struct sockaddr_in to = random_target(client);
    struct measured measured = {};
    uint64_t until_ns;
    ssize_t sent;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    memset(block, STREAM, sizeof block);
    wait_for_line();
    measured.started_ns = monotonic_ns();
    if (connect(fd, (struct sockaddr *)&to, sizeof to))
        err(1, "connect");
    until_ns = monotonic_ns() + client->count * 1000000ull;
    do {
        sent = send(fd, block, sizeof block, MSG_NOSIGNAL);
        if (sent < 0)
            err(1, "send");
        measured.count += (uint64_t)sent;
    } while (monotonic_ns() < until_ns);
    shutdown(fd, SHUT_WR);
    if (recv(fd, block, 1, 0) != 0) /* the server closes when it has everything */
        err(1, "not everything arrived");
    measured.ended_ns = monotonic_ns();
    write_all(&measured, sizeof measured, 1);
    fflush(stdout);
}

/* ---- watch -------------------------------------------------------------------------------------- */
static void watch(uint32_t gap_us, const char *text)
{
    struct timespec gap = {.tv_sec = gap_us / 1000000, .tv_nsec = (gap_us % 1000000) * 1000};
    struct target target = parse_target(text);
    struct sample sample;
    unsigned int wanted, tries;

    prctl(PR_SET_TIMERSLACK, 1); /* else a gap is 50 us longer */
    while (scanf("%u", &wanted) == 1) {
        alarm(LOAD_SECONDS);
        for (tries = 1; connect_once(&target.first, &sample), sample.server != wanted; tries++)
            nanosleep(&gap, NULL);
        printf("%llu %u\n", (unsigned long long)sample.started_ns, tries);
        fflush(stdout);
    }
}

static void run_client(const char *kind, struct client *client)
{
    if (!strcmp(kind, "connect")) {
        measure(client, take_connection);
    } else if (!strcmp(kind, "hold")) {
        measure(client, take_held);
        wait_for_end_of_input();
    } else if (!strcmp(kind, "ask") || !strcmp(kind, "ask-connected")) {
        open_asker(client, strcmp(kind, "ask"));
        measure(client, take_answer);
    } else if (!strcmp(kind, "stream")) {
        stream(client);
    } else {
        errx(2, "no such kind of client: %s", kind);
    }
}

int main(int argc, char **argv)
{
    struct client client;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    raise_descriptor_limit();
    if (argc >= 3 && !strcmp(argv[1], "serve")) {
        serve(argc - 2, argv + 2);
    } else if (argc == 5 && !strcmp(argv[1], "attend")) {
        attend(number(argv[2]), number(argv[3]), argv[4]);
    } else if (argc == 4 && !strcmp(argv[1], "watch")) {
        watch(number(argv[2]), argv[3]);
    } else if (argc >= 6 && !strcmp(argv[1], "pace")) {
        prctl(PR_SET_TIMERSLACK, 1); /* else each one is 50 us late */
        client = new_client(argv[3], argv[4], argc - 5, argv + 5);
        client.gap_ns = 1000000000u / number(argv[2]);
        measure(&client, take_paced);
    } else if (argc >= 5) {
        client = new_client(argv[2], argv[3], argc - 4, argv + 4);
        run_client(argv[1], &client);
    } else {
        errx(2, "usage: see the beginning of traffic.c");
    }
    return 0;
}
