// The physical limit of a disk: writes that many bytes of noise past the page cache, into a fresh
// file whose blocks were reserved, from several threads, 1 MiB at a time, then flushes it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BLOCK ((size_t)1 << 20)

static int file;
static long long len, next;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void *writer(void *unused) {
    (void)unused;
    unsigned long long *block = aligned_alloc(4096, BLOCK);
    if (!block) {
        fail("aligned_alloc");
    }
    unsigned long long noise = 88172645463325252ULL;
    for (size_t at = 0; at < BLOCK / sizeof *block; at++) {
        noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
        block[at] = noise;
    }
    for (;;) {
        long long at = __atomic_fetch_add(&next, (long long)BLOCK, __ATOMIC_RELAXED);
        if (at >= len) {
            return NULL;
        }
        block[0] = (unsigned long long)at;
        if (pwrite(file, block, BLOCK, at) != (ssize_t)BLOCK) {
            fail("pwrite");
        }
    }
}

int main(int count, char **words) {
    if (count < 3) {
        fprintf(stderr, "usage: direct FILE MIB [THREADS]\n");
        return 2;
    }
    pthread_t threads[64];
    int wanted = count > 3 ? atoi(words[3]) : 4;
    len = atoll(words[2]) << 20;
    file = open(words[1], O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0644);
    if (file < 0 || fallocate(file, 0, 0, len) < 0) {
        fail(words[1]);
    }
    for (int at = 0; at < wanted && at < 64; at++) {
        if (pthread_create(&threads[at], NULL, writer, NULL)) {
            fail("pthread_create");
        }
    }
    for (int at = 0; at < wanted && at < 64; at++) {
        pthread_join(threads[at], NULL);
    }
    if (fsync(file) < 0 || close(file) < 0) {
        fail("fsync");
    }
    return 0;
}
