// The limit of a file system in memory: writes that many bytes from one buffer that stays in the
// processor's cache, with one thread, and reads nothing.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char block[256 << 10];

int main(int count, char **words) {
    if (count != 3) {
        fprintf(stderr, "usage: buffered FILE MIB\n");
        return 2;
    }
    memset(block, 0x5a, sizeof block);
    int file = open(words[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    long long left = file < 0 ? -1 : atoll(words[2]) << 20;
    while (left > 0) {
        ssize_t wrote = write(file, block, sizeof block);
        if (wrote <= 0) {
            break;
        }
        left -= wrote;
    }
    if (left || fsync(file) < 0 || close(file) < 0) {
        perror(words[1]);
        return 1;
    }
    return 0;
}
