// Touches that many MiB of fresh memory and ends. A virtual machine may have given its free memory
// back to the host: taking it again costs more than the copy that is to be timed.
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int count, char **words) {
    long mib = count == 2 ? atol(words[1]) : 0;
    if (mib <= 0) {
        fprintf(stderr, "usage: warm MIB\n");
        return 2;
    }
    size_t len = (size_t)mib << 20;
    char *bytes = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED) {
        perror("warm");
        return 1;
    }
    madvise(bytes, len, MADV_HUGEPAGE);
    for (size_t at = 0; at < len; at += 4096) {
        bytes[at] = 1;
    }
    return 0;
}
