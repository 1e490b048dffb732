// SPDX-License-Identifier: Apache-2.0
/*
 * Preloaded into a process that runs the real code (LD_PRELOAD): counts what is asked of the kernel
 * that changes something there, and lets one such request fail, or ends the process at it.
 *
 * FAULT_PLAN names a file with one struct plan, which the process that made it and all that have
 * this see at once, the loader child too. Only files below FAULT_PINS count as pins.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum kind { /* Kind in fault.py */
    FAIL,         /* it is not done, and fails with `error` */
    FAIL_HALF,    /* of the requests to write many entries: half is done, then it fails */
    KILL_BEFORE,  /* SIGKILL for the process group, before it is done */
    KILL_AFTER,   /* once it is done */
    KILL_HALF,    /* as FAIL_HALF */
    KILL_ALONE,   /* SIGKILL for this process only, before it is done */
};

struct plan { /* PLAN in fault.py */
    uint64_t seen; /* requests that count, up to now */
    uint64_t at;   /* which of them is hit, from 1 on; 0: none */
    uint32_t kind;
    int32_t error;
    uint32_t writes_only; /* only what writes to a map, or is about a link, counts */
    uint32_t zero;
    char hit[48];  /* what that was; empty: nothing yet */
};

static struct plan *plan;
static const char *pins;

static const char *const changes[] = {
    [BPF_MAP_CREATE] = "MAP_CREATE",
    [BPF_MAP_UPDATE_ELEM] = "MAP_UPDATE_ELEM",
    [BPF_MAP_DELETE_ELEM] = "MAP_DELETE_ELEM",
    [BPF_PROG_LOAD] = "PROG_LOAD",
    [BPF_OBJ_PIN] = "OBJ_PIN",
    [BPF_OBJ_GET] = "OBJ_GET",
    [BPF_PROG_ATTACH] = "PROG_ATTACH",
    [BPF_PROG_DETACH] = "PROG_DETACH",
    [BPF_BTF_LOAD] = "BTF_LOAD",
    [BPF_MAP_UPDATE_BATCH] = "MAP_UPDATE_BATCH",
    [BPF_MAP_DELETE_BATCH] = "MAP_DELETE_BATCH",
    [BPF_LINK_CREATE] = "LINK_CREATE",
    [BPF_LINK_UPDATE] = "LINK_UPDATE",
    [BPF_LINK_DETACH] = "LINK_DETACH",
};

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULT_PLAN");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

    pins = getenv("FAULT_PINS");
    if (fd < 0 || !pins)
        errx(1, "fault.c: FAULT_PLAN or FAULT_PINS is missing");
    plan = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (plan == MAP_FAILED)
        err(1, "fault.c: %s", path);
    close(fd);
}

static int counts(unsigned long cmd)
{
    switch (cmd) {
    case BPF_MAP_UPDATE_ELEM:
    case BPF_MAP_UPDATE_BATCH:
    case BPF_MAP_DELETE_ELEM:
    case BPF_MAP_DELETE_BATCH:
    case BPF_LINK_CREATE:
    case BPF_LINK_UPDATE:
    case BPF_LINK_DETACH:
        return 1;
    }
    return cmd < sizeof(changes) / sizeof(*changes) && changes[cmd] && !plan->writes_only;
}

static int is_half(void)
{
    return plan->kind == FAIL_HALF || plan->kind == KILL_HALF;
}

/* Count one request; whether it is the one to be hit. */
static int is_hit(const char *what)
{
    if (__atomic_add_fetch(&plan->seen, 1, __ATOMIC_SEQ_CST) != plan->at)
        return 0;
    snprintf(plan->hit, sizeof(plan->hit), "%s", what);
    return 1;
}

/* End this process, or have the request fail: -1 for the caller. */
static int strike(void)
{
    if (plan->kind == KILL_ALONE)
        kill(getpid(), SIGKILL);
    else if (plan->kind != FAIL && plan->kind != FAIL_HALF)
        kill(0, SIGKILL);
    errno = plan->error;
    return -1;
}

/* Do, or do not, what was hit. */
#define AT_HIT(done)                       \
    do {                                   \
        if (plan->kind == KILL_AFTER)      \
            (void)!(done);                 \
        return strike();                   \
    } while (0)

/* ---- bpf(2), which has no wrapper in the C library ----------------------------------------------- */
static long half_of_batch(long number, const union bpf_attr *asked, long size)
{
    union bpf_attr half = {};
    long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall");

    memcpy(&half, asked, size);
    half.batch.count /= 2;
    return real(number, BPF_MAP_UPDATE_BATCH, &half, size);
}

long syscall(long number, ...)
{
    long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall");
    long arg[6];
    va_list list;
    unsigned long cmd;

    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arg[i] = va_arg(list, long);
    va_end(list);
    cmd = (unsigned int)arg[0];
    if (number == SYS_bpf && counts(cmd)) {
        const union bpf_attr *asked = (const union bpf_attr *)arg[1];

        if (is_half()) {
            if (cmd == BPF_MAP_UPDATE_BATCH && asked->batch.count > 1 && is_hit(changes[cmd])) {
                half_of_batch(number, asked, arg[2]);
                return strike();
            }
        } else if (is_hit(changes[cmd])) {
            AT_HIT(real(number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]));
        }
    }
    return real(number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

/* ---- pins are files ------------------------------------------------------------------------------ */
static int is_pin(const char *path)
{
    return !is_half() && !plan->writes_only && !strncmp(path, pins, strlen(pins));
}

int unlink(const char *path)
{
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");

    if (is_pin(path) && is_hit("unlink"))
        AT_HIT(real(path));
    return real(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    int (*real)(int, const char *, int) = dlsym(RTLD_NEXT, "unlinkat");

    if (is_pin(path) && is_hit("unlinkat"))
        AT_HIT(real(folder, path, flags));
    return real(folder, path, flags);
}

int rmdir(const char *path)
{
    int (*real)(const char *) = dlsym(RTLD_NEXT, "rmdir");

    if (is_pin(path) && is_hit("rmdir"))
        AT_HIT(real(path));
    return real(path);
}

int mkdir(const char *path, mode_t mode)
{
    int (*real)(const char *, mode_t) = dlsym(RTLD_NEXT, "mkdir");

    if (is_pin(path) && is_hit("mkdir"))
        AT_HIT(real(path, mode));
    return real(path, mode);
}

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");

    if (is_pin(to) && is_hit("rename"))
        AT_HIT(real(from, to));
    return real(from, to);
}
