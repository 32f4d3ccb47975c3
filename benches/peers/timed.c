// Runs a command and writes as JSON what it used: exit code, wall and CPU seconds, peak RSS and
// peak anonymous memory, bytes read and written by its calls and by its disk.
//
//   timed FILE [--fsync PATH] [--limit SECONDS] [--kill-at BYTES] COMMAND...
//
// --fsync flushes that file afterwards, within the time. --limit kills what takes longer; --kill-at
// kills once the calls of the command have written so much. The peak RSS of a process counts from
// before its exec, so whoever starts it must be small.
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct options {
    const char *out, *fsync;
    double limit_s;
    long long kill_at;
    char **command;
};

struct moved {
    long long rchar, wchar, read_bytes, write_bytes;
};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static double seconds(struct timeval time) {
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

// The number after `name` in a file of /proc; 0 where there is none.
static long long number_in(const char *path, const char *name) {
    char line[256];
    long long found = 0;
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, name, strlen(name)) == 0) {
            found = atoll(line + strlen(name));
            break;
        }
    }
    if (file) {
        fclose(file);
    }
    return found;
}

// What the calls of a process did, with those of the children that it has waited for.
static struct moved moved_by(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/io", pid);
    return (struct moved){number_in(path, "rchar:"), number_in(path, "wchar:"),
                          number_in(path, "read_bytes:"), number_in(path, "write_bytes:")};
}

// Anonymous memory of a process and its descendants, in KiB.
static long long anonymous_kib(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    long long sum = number_in(path, "RssAnon:");
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, pid);
    FILE *file = fopen(path, "r");
    int child;
    while (file && fscanf(file, "%d", &child) == 1) {
        sum += anonymous_kib(child);
    }
    if (file) {
        fclose(file);
    }
    return sum;
}

static struct options parsed(int count, char **words) {
    struct options options = {.out = count > 1 ? words[1] : NULL};
    int at = 2;
    for (; at + 1 < count && strncmp(words[at], "--", 2) == 0; at += 2) {
        if (strcmp(words[at], "--fsync") == 0) {
            options.fsync = words[at + 1];
        } else if (strcmp(words[at], "--limit") == 0) {
            options.limit_s = atof(words[at + 1]);
        } else if (strcmp(words[at], "--kill-at") == 0) {
            options.kill_at = atoll(words[at + 1]);
        } else {
            break;
        }
    }
    if (at >= count) {
        fprintf(stderr, "usage: timed FILE [--fsync PATH] [--limit S] [--kill-at BYTES] CMD...\n");
        exit(2);
    }
    options.command = words + at;
    return options;
}

static pid_t started(char **command) {
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execvp(command[0], command);
        _exit(127);
    }
    if (child < 0) {
        fail("fork");
    }
    return child;
}

// Until it has ended, which is told at once; looks at its memory every 20 ms. Gives the peak.
static long long watch(pid_t child, const struct options *options, double began) {
    struct pollfd ended = {.fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN};
    if (ended.fd < 0) {
        fail("pidfd_open");
    }
    long long peak = 0;
    while (poll(&ended, 1, options->kill_at ? 2 : 20) == 0) {
        long long kib = anonymous_kib(child);
        peak = kib > peak ? kib : peak;
        int late = options->limit_s > 0 && now() - began > options->limit_s;
        int far = options->kill_at && moved_by(child).wchar >= options->kill_at;
        if (late || far) {
            kill(-child, SIGKILL);
        }
    }
    close(ended.fd);
    return peak;
}

static void flush(const char *path) {
    int file = open(path, O_RDONLY);
    if (file < 0 || fsync(file) < 0 || close(file) < 0) {
        fail(path);
    }
}

int main(int count, char **words) {
    struct options options = parsed(count, words);
    double began = now();
    pid_t child = started(options.command);
    long long anonymous = watch(child, &options, began);
    siginfo_t info;
    if (waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) < 0) {
        fail("waitid");
    }
    if (options.fsync && info.si_code == CLD_EXITED && info.si_status == 0) {
        flush(options.fsync);
    }
    double wall = now() - began;
    struct moved moved = moved_by(child);
    int status;
    struct rusage used, own;
    if (wait4(child, &status, 0, &used) < 0 || getrusage(RUSAGE_SELF, &own) < 0) {
        fail("wait4");
    }
    // The flush is the command's; the watching is not, but it is next to nothing.
    double cpu = seconds(used.ru_utime) + seconds(used.ru_stime);
    cpu += options.fsync ? seconds(own.ru_stime) : 0;
    FILE *out = fopen(options.out, "w");
    if (!out) {
        fail(options.out);
    }
    fprintf(out, "{\"code\": %d, \"wall_s\": %.6f, \"cpu_s\": %.6f, \"peak_rss_kib\": %ld, ",
            WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), wall, cpu,
            used.ru_maxrss);
    fprintf(out, "\"peak_anonymous_kib\": %lld, \"call_read_bytes\": %lld, ", anonymous,
            moved.rchar);
    fprintf(out, "\"call_written_bytes\": %lld, \"disk_read_bytes\": %lld, ", moved.wchar,
            moved.read_bytes);
    fprintf(out, "\"disk_written_bytes\": %lld}\n", moved.write_bytes);
    return fclose(out) ? 1 : 0;
}
