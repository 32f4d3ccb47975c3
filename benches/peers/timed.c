// Runs a command and writes what it used to a file: exit code, wall and CPU seconds, peak RSS in
// KiB. The peak of a process counts from before its exec, so whoever starts it must be small.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static double seconds(struct timeval time) {
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

int main(int count, char **words) {
    if (count < 3) {
        fprintf(stderr, "usage: timed FILE COMMAND...\n");
        return 2;
    }
    double began = now();
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        if (null < 0 || dup2(null, STDOUT_FILENO) < 0) {
            _exit(126);
        }
        execvp(words[2], words + 2);
        _exit(127);
    }
    int status;
    struct rusage used;
    if (child < 0 || wait4(child, &status, 0, &used) < 0) {
        perror("timed");
        return 1;
    }
    double wall = now() - began;
    FILE *out = fopen(words[1], "w");
    if (!out) {
        perror(words[1]);
        return 1;
    }
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    fprintf(out, "%d %.6f %.6f %ld\n", code, wall,
            seconds(used.ru_utime) + seconds(used.ru_stime), used.ru_maxrss);
    return fclose(out) ? 1 : 0;
}
