// An S3 server that keeps everything in memory, faster than the clients that are timed against it.
//
//   s3stub [--warm MIB] [--discard BYTES]
//
// Listens on a free port of the loopback, which its first line names; ends when its standard input
// does. --warm touches that much memory at once: what it has had once it never gives back.
// --discard counts bodies that are longer and throws them away.
//
// What it does: objects (ranges, conditions, copies), listings with delimiters and pages, multipart
// uploads, deletes of many; bodies plain, chunked, or in signed chunks with trailers. What it does
// not: it believes every signature and checksum, and tells the latter back as they came. An ETag is
// the MD5 that the client sent along, or else a number. Besides S3 it answers to
//
//   GET /-/counts    what was asked since the last reset, as JSON
//   POST /-/reset    counts from nothing; ?track=1 also sums bodies, to know what comes again
//   POST /-/empty    removes all objects and uploads
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BLOCK = 256 << 10,
    SMALL = 64 << 10,   // bodies up to that length are no blocks
    TRACKED = 64 << 10, // and those from there on are looked for when they come again
    HEADERS_MAX = 64,
    BUFFER = 64 << 10,
    LINE = 512,
    PAGE = 1000,
    SEEN = 1 << 18,
};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void *grown(void *at, size_t size) {
    at = realloc(at, size);
    if (!at) {
        fail("memory");
    }
    return at;
}

// --- Texts that grow

struct text {
    char *at;
    size_t len, room;
};

static void put(struct text *text, const char *from, size_t len) {
    if (text->len + len + 1 > text->room) {
        text->room = 2 * (text->len + len + 1);
        text->at = grown(text->at, text->room);
    }
    memcpy(text->at + text->len, from, len);
    text->len += len;
    text->at[text->len] = 0;
}

__attribute__((format(printf, 2, 3))) static void say(struct text *text, const char *form, ...) {
    char *made = NULL;
    va_list more;
    va_start(more, form);
    int len = vasprintf(&made, form, more);
    va_end(more);
    if (len < 0) {
        fail("memory");
    }
    put(text, made, (size_t)len);
    free(made);
}

// As it stands in XML; where a listing was asked for that, as it stands in a URL.
static void say_key(struct text *text, const char *key, int in_url) {
    for (; *key; key++) {
        int is_plain = isalnum((unsigned char)*key) || strchr("-_.~/", *key);
        if (is_plain || (!in_url && (unsigned char)*key >= 0x80)) {
            put(text, key, 1);
        } else if (in_url) {
            say(text, "%%%02X", (unsigned char)*key);
        } else {
            say(text, "&#%d;", (unsigned char)*key);
        }
    }
}

static void decode_url(char *text, int spaced) {
    char *to = text;
    for (char *from = text; *from; from++, to++) {
        unsigned code;
        *to = spaced && *from == '+' ? ' ' : *from;
        int is_coded = *from == '%' && isxdigit((unsigned char)from[1]);
        if (is_coded && sscanf(from + 1, "%2x", &code) == 1) {
            *to = (char)code;
            from += 2;
        }
    }
    *to = 0;
}

static void decode_xml(char *text) {
    static const char *NAMES[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&apos;"};
    char *to = text;
    for (char *from = text; *from; to++) {
        size_t taken = 1;
        *to = *from;
        for (int at = 0; at < 5; at++) {
            if (strncmp(from, NAMES[at], strlen(NAMES[at])) == 0) {
                *to = "&<>\"'"[at];
                taken = strlen(NAMES[at]);
            }
        }
        if (strncmp(from, "&#", 2) == 0) {
            *to = (char)(from[2] == 'x' ? strtol(from + 3, NULL, 16) : strtol(from + 2, NULL, 10));
            taken = strcspn(from, ";") + 1;
        }
        from += taken;
    }
    *to = 0;
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void say_time(char to[64], const char *form, time_t at) {
    struct tm parts;
    gmtime_r(&at, &parts);
    strftime(to, 64, form, &parts);
}

#define IN_HEADERS "%a, %d %b %Y %H:%M:%S GMT"
#define IN_LISTS "%Y-%m-%dT%H:%M:%S.000Z"

// --- Counts

enum what {
    PUT, GET, HEAD, DELETE, DELETE_MANY, LIST, CREATE, PART, COMPLETE, ABORT, LIST_PARTS,
    LIST_UPLOADS, COPY, BUCKET, OTHER, CONTROL, KINDS,
};
static const char *NAMES[] = {
    "put", "get", "head", "delete", "delete_many", "list", "create", "part", "complete", "abort",
    "list_parts", "list_uploads", "copy", "bucket", "other", "control",
};

static atomic_llong asked[KINDS], busy_ns[KINDS], received_bytes, sent_bytes, refused;
static atomic_llong stored_bytes, repeated_bytes, stored_count;
static atomic_int tracking;
static long long discard_from = -1;

static pthread_mutex_t seen_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t seen[SEEN];

// Whether a body of that sum was stored before.
static int seen_before(uint64_t sum) {
    pthread_mutex_lock(&seen_lock);
    size_t at = sum % SEEN;
    for (size_t tries = 0; seen[at] && seen[at] != sum && tries < SEEN; tries++) {
        at = (at + 1) % SEEN;
    }
    int found = seen[at] == sum;
    seen[at] = sum;
    pthread_mutex_unlock(&seen_lock);
    return found;
}

// --- Memory for bodies: blocks of a file in memory, which are had again and never given back

static char *pool;
static int pool_file;
static const size_t POOL_BYTES = (size_t)1 << 40;
static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned *spare, next_block;
static size_t spare_count, spare_room;

static void give_back(unsigned block) {
    pthread_mutex_lock(&pool_lock);
    if (spare_count == spare_room) {
        spare_room = 2 * spare_room + 1024;
        spare = grown(spare, spare_room * sizeof *spare);
    }
    spare[spare_count++] = block;
    pthread_mutex_unlock(&pool_lock);
}

static unsigned take_block(void) {
    pthread_mutex_lock(&pool_lock);
    unsigned block = spare_count ? spare[--spare_count] : next_block++;
    pthread_mutex_unlock(&pool_lock);
    return block;
}

static char *block_at(unsigned block) {
    return pool + (size_t)block * BLOCK;
}

static void open_pool(long long warm_mib) {
    pool_file = memfd_create("s3stub", MFD_CLOEXEC);
    if (pool_file < 0 || ftruncate(pool_file, (off_t)POOL_BYTES) < 0) {
        fail("memfd");
    }
    pool = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, pool_file, 0);
    if (pool == MAP_FAILED) {
        fail("mmap");
    }
    for (long long left = warm_mib << 20; left > 0; left -= BLOCK) {
        memset(block_at(next_block), 1, BLOCK);
        give_back(next_block++);
    }
}

// --- Bodies, objects, uploads

struct body {
    atomic_int refs;
    long long len;
    int is_discarded;
    char *small;
    unsigned *blocks;
    size_t count, room;
    uint64_t sum;
};

static void drop_body(struct body *body) {
    if (body && atomic_fetch_sub(&body->refs, 1) == 1) {
        for (size_t at = 0; at < body->count; at++) {
            give_back(body->blocks[at]);
        }
        free(body->blocks);
        free(body->small);
        free(body);
    }
}

struct object {
    atomic_int refs;
    char *name; // the bucket, a slash, the key
    char tag[48], sum[128];
    char *meta;
    time_t when;
    long long len;
    size_t count;
    struct body **bodies;
};

struct part {
    int number;
    char tag[48], sum[128];
    struct body *body;
};

struct upload {
    char id[40];
    char *name, *meta;
    time_t when;
    struct part *parts; // by their numbers
    size_t count, room;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct object **objects; // by their names
static struct upload **uploads;
static size_t object_count, object_room, upload_count, upload_room;
static char buckets[64][80];
static size_t bucket_count;
static atomic_ullong serial = 1;

static void drop_object(struct object *object) {
    if (object && atomic_fetch_sub(&object->refs, 1) == 1) {
        for (size_t at = 0; at < object->count; at++) {
            drop_body(object->bodies[at]);
        }
        free(object->bodies);
        free(object->name);
        free(object->meta);
        free(object);
    }
}

static void drop_upload(struct upload *upload) {
    for (size_t at = 0; at < upload->count; at++) {
        drop_body(upload->parts[at].body);
    }
    free(upload->parts);
    free(upload->name);
    free(upload->meta);
    free(upload);
}

// Where the first name is that is not before this one.
static size_t place_of(const char *name) {
    size_t low = 0, high = object_count;
    while (low < high) {
        size_t at = (low + high) / 2;
        if (strcmp(objects[at]->name, name) < 0) {
            low = at + 1;
        } else {
            high = at;
        }
    }
    return low;
}

static struct object *object_named(const char *name) {
    size_t at = place_of(name);
    return at < object_count && strcmp(objects[at]->name, name) == 0 ? objects[at] : NULL;
}

static void insert(struct object *object) {
    size_t at = place_of(object->name);
    if (at < object_count && strcmp(objects[at]->name, object->name) == 0) {
        drop_object(objects[at]);
        objects[at] = object;
        return;
    }
    if (object_count == object_room) {
        object_room = 2 * object_room + 64;
        objects = grown(objects, object_room * sizeof *objects);
    }
    memmove(objects + at + 1, objects + at, (object_count++ - at) * sizeof *objects);
    objects[at] = object;
}

static int removed(const char *name) {
    size_t at = place_of(name);
    if (at == object_count || strcmp(objects[at]->name, name) != 0) {
        return 0;
    }
    drop_object(objects[at]);
    memmove(objects + at, objects + at + 1, (--object_count - at) * sizeof *objects);
    return 1;
}

static struct object *object_of(const char *name, const char *meta, size_t count) {
    struct object *object = calloc(1, sizeof *object);
    if (!object) {
        fail("memory");
    }
    object->refs = 1;
    object->name = strdup(name);
    object->meta = strdup(meta ? meta : "");
    object->when = time(NULL);
    object->bodies = grown(NULL, (count + 1) * sizeof *object->bodies);
    return object;
}

static void add_body(struct object *object, struct body *body) {
    atomic_fetch_add(&body->refs, 1);
    object->bodies[object->count++] = body;
    object->len += body->len;
}

// --- Requests

struct layer {
    int on, begun;
    long long left;
};

struct conn {
    int socket, is_broken;
    char buffer[BUFFER + 1];
    size_t start, end;
    char *method, *path, *query;
    char *names[HEADERS_MAX], *values[HEADERS_MAX];
    size_t header_count;
    long long left;          // of the body, as it comes; -1: until its last chunk
    struct layer layers[3];  // 1: chunks of HTTP; 2: signed chunks of S3
    char trailer[128];
    char bucket[80];
    char *key, *name;
    enum what what;
};

static const char *header(const struct conn *c, const char *name) {
    for (size_t at = 0; at < c->header_count; at++) {
        if (strcasecmp(c->names[at], name) == 0) {
            return c->values[at];
        }
    }
    return NULL;
}

// The value of a word of the query, decoded, to be freed; NULL where it is not there.
static char *word(const struct conn *c, const char *name) {
    size_t len = strlen(name);
    for (const char *at = c->query; at && *at; at += strcspn(at, "&"), at += *at == '&') {
        if (strncmp(at, name, len) == 0 && (at[len] == 0 || strchr("=&", at[len]))) {
            const char *value = at + len + (at[len] == '=');
            char *found = strndup(value, strcspn(value, "&"));
            decode_url(found, 1);
            return found;
        }
    }
    return NULL;
}

static int has_word(const struct conn *c, const char *name) {
    char *found = word(c, name);
    free(found);
    return found != NULL;
}

static ssize_t get_some(struct conn *c, void *to, size_t len) {
    ssize_t got = recv(c->socket, to, len, 0);
    if (got > 0) {
        atomic_fetch_add(&received_bytes, got);
    } else {
        c->is_broken = 1;
    }
    return got;
}

static ssize_t read_raw(struct conn *c, void *to, size_t len) {
    if (c->left >= 0 && len > (size_t)c->left) {
        len = (size_t)c->left;
    }
    if (len == 0) {
        return 0;
    }
    if (c->start == c->end && len < LINE) {
        size_t most = c->left >= 0 && c->left < LINE ? (size_t)c->left : LINE;
        c->start = c->end = 0;
        ssize_t got = get_some(c, c->buffer, most);
        if (got <= 0) {
            return -1;
        }
        c->end = (size_t)got;
    }
    ssize_t got = (ssize_t)(c->end - c->start);
    if (got) {
        got = got < (ssize_t)len ? got : (ssize_t)len;
        memcpy(to, c->buffer + c->start, (size_t)got);
        c->start += (size_t)got;
    } else if ((got = get_some(c, to, len)) <= 0) {
        return -1;
    }
    c->left -= c->left >= 0 ? got : 0;
    return got;
}

static ssize_t read_layer(struct conn *c, int level, void *to, size_t len);

// A line without its end; -1 at the end of what is below.
static int read_line(struct conn *c, int level, char line[LINE]) {
    int len = 0;
    for (char one; len < LINE - 1;) {
        if (read_layer(c, level, &one, 1) != 1) {
            return len ? len : -1;
        }
        if (one == '\n') {
            break;
        }
        if (one != '\r') {
            line[len++] = one;
        }
    }
    line[len] = 0;
    return len;
}

static void read_trailers(struct conn *c, int level) {
    char line[LINE];
    while (read_line(c, level, line) > 0) {
        if (strncasecmp(line, "x-amz-checksum-", 15) == 0 && strlen(line) < sizeof c->trailer - 2) {
            snprintf(c->trailer, sizeof c->trailer, "%s\r\n", line);
        }
    }
}

// 0 at the end, after which the body has been read whole.
static ssize_t read_layer(struct conn *c, int level, void *to, size_t len) {
    if (level == 0) {
        return read_raw(c, to, len);
    }
    struct layer *layer = &c->layers[level];
    if (!layer->on) {
        return read_layer(c, level - 1, to, len);
    }
    char line[LINE];
    if (layer->left == 0) {
        if (layer->begun < 0) {
            return 0;
        }
        if (layer->begun && read_line(c, level - 1, line) != 0) {
            c->is_broken = 1;
            return -1;
        }
        if (read_line(c, level - 1, line) <= 0) {
            c->is_broken = 1;
            return -1;
        }
        layer->left = strtoll(line, NULL, 16);
        layer->begun = layer->left ? 1 : -1;
        if (layer->left == 0) {
            read_trailers(c, level - 1);
            // What is below has an end of its own.
            char rest[LINE];
            while (level > 1 && read_layer(c, level - 1, rest, sizeof rest) > 0) {
            }
            return 0;
        }
    }
    size_t most = len < (size_t)layer->left ? len : (size_t)layer->left;
    ssize_t got = read_layer(c, level - 1, to, most);
    if (got <= 0) {
        c->is_broken = 1;
        return -1;
    }
    layer->left -= got;
    return got;
}

static uint64_t summed(uint64_t sum, const char *from, size_t len) {
    uint64_t each;
    for (; len >= sizeof each; from += sizeof each, len -= sizeof each) {
        memcpy(&each, from, sizeof each);
        sum = (sum ^ each) * 0x9E3779B97F4A7C15u;
        sum ^= sum >> 29;
    }
    for (; len; len--) {
        sum = (sum ^ (unsigned char)*from++) * 0x100000001B3u;
    }
    return sum;
}

// As much as there is, up to `len`; less only at the end.
static size_t read_full(struct conn *c, char *to, size_t len, struct body *body) {
    size_t had = 0;
    while (had < len) {
        ssize_t got = read_layer(c, 2, to + had, len - had);
        if (got <= 0) {
            break;
        }
        had += (size_t)got;
    }
    body->len += (long long)had;
    if (tracking) {
        body->sum = summed(body->sum, to, had);
    }
    return had;
}

// The body of a request; NULL where the connection broke.
static struct body *read_body(struct conn *c) {
    struct body *body = calloc(1, sizeof *body);
    const char *decoded = header(c, "x-amz-decoded-content-length");
    long long len = decoded ? atoll(decoded) : c->left;
    static __thread char *scratch;
    if (!body || (!scratch && !(scratch = malloc(BLOCK)))) {
        fail("memory");
    }
    body->refs = 1;
    body->is_discarded = discard_from >= 0 && len > discard_from;
    if (!body->is_discarded && len >= 0 && len <= SMALL) {
        body->small = grown(NULL, SMALL + 1);
        read_full(c, body->small, SMALL, body);
        body->small[body->len] = 0;
        body->small = grown(body->small, (size_t)body->len + 1);
    }
    while (!body->small) {
        size_t had;
        if (body->is_discarded) {
            had = read_full(c, scratch, BLOCK, body);
        } else {
            if (body->count == body->room) {
                body->room = 2 * body->room + 16;
                body->blocks = grown(body->blocks, body->room * sizeof *body->blocks);
            }
            unsigned block = body->blocks[body->count++] = take_block();
            had = read_full(c, block_at(block), BLOCK, body);
        }
        if (had < BLOCK || body->len == len) {
            break;
        }
    }
    // The last chunk has a line of its own.
    char rest[LINE];
    while (!c->is_broken && read_layer(c, 2, rest, sizeof rest) > 0) {
    }
    if (c->is_broken) {
        drop_body(body);
        return NULL;
    }
    return body;
}

// What was stored, of which an answer is about to tell.
static void stored(const struct body *body) {
    atomic_fetch_add(&stored_bytes, body->len);
    atomic_fetch_add(&stored_count, 1);
    if (tracking && body->len >= TRACKED && seen_before(body->sum | 1)) {
        atomic_fetch_add(&repeated_bytes, body->len);
    }
}

// --- Replies

static int send_all(struct conn *c, const char *from, size_t len, int flags) {
    while (len) {
        ssize_t done = send(c->socket, from, len, flags | MSG_NOSIGNAL);
        if (done <= 0) {
            c->is_broken = 1;
            return 0;
        }
        atomic_fetch_add(&sent_bytes, done);
        from += done;
        len -= (size_t)done;
    }
    return 1;
}

static void say_head(struct text *text, int status, long long len) {
    char when[64];
    say_time(when, IN_HEADERS, time(NULL));
    const char *reason = status < 300 ? "OK" : "Refused";
    say(text, "HTTP/1.1 %d %s\r\nDate: %s\r\nServer: s3stub\r\n", status, reason, when);
    say(text, "x-amz-request-id: %016llX\r\n", atomic_fetch_add(&serial, 1));
    if (status != 204 && status != 304) {
        say(text, "Content-Length: %lld\r\n", len);
    }
}

// A reply with those headers, each with the end of its line, and that body, which it frees.
static void answer(struct conn *c, int status, const char *headers, struct text body) {
    struct text text = {0};
    say_head(&text, status, (long long)body.len);
    say(&text, "%s%s\r\n", headers, body.len ? "Content-Type: application/xml\r\n" : "");
    if (body.len && strcmp(c->method, "HEAD") != 0) {
        put(&text, body.at, body.len);
    }
    send_all(c, text.at, text.len, 0);
    free(text.at);
    free(body.at);
}

static void refuse(struct conn *c, int status, const char *code) {
    struct text body = {0};
    atomic_fetch_add(&refused, 1);
    if (status != 304) {
        say(&body, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code>", code);
        say(&body, "<Message>%s</Message><RequestId>0</RequestId></Error>", code);
    }
    answer(c, status, "", body);
}

#define XMLNS "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\""

static struct text xml(const char *root) {
    struct text text = {0};
    say(&text, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<%s %s>", root, XMLNS);
    return text;
}

// The MD5 that came along, which is what clients hold an ETag against; else a number.
static void make_tag(const struct conn *c, char tag[48]) {
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *md5 = header(c, "content-md5");
    if (!md5 || strlen(md5) != 24) {
        snprintf(tag, 48, "\"%016llx%016llx\"", (unsigned long long)time(NULL),
                 atomic_fetch_add(&serial, 1));
        return;
    }
    unsigned bits = 0;
    int had = 0, at = 1;
    tag[0] = '"';
    for (; *md5 && at < 33; md5++) {
        const char *digit = strchr(DIGITS, *md5);
        bits = bits << 6 | (unsigned)(digit ? digit - DIGITS : 0);
        for (had += 6; had >= 8 && at < 33; had -= 8, at += 2) {
            snprintf(tag + at, 3, "%02x", bits >> (had - 8) & 0xff);
        }
    }
    strcpy(tag + at, "\"");
}

// The line of the checksum that came along, in the headers or behind the body.
static void make_sum(const struct conn *c, char sum[128]) {
    snprintf(sum, 128, "%s", c->trailer);
    for (size_t at = 0; at < c->header_count && !*sum; at++) {
        int is_sum = strncasecmp(c->names[at], "x-amz-checksum-", 15) == 0 &&
                     strcasecmp(c->names[at], "x-amz-checksum-algorithm") != 0 &&
                     strcasecmp(c->names[at], "x-amz-checksum-type") != 0 &&
                     strcasecmp(c->names[at], "x-amz-checksum-mode") != 0;
        if (is_sum && strlen(c->values[at]) < 80) {
            snprintf(sum, 128, "%s: %s\r\n", c->names[at], c->values[at]);
        }
    }
}

// The lines of headers that an object keeps; to be freed.
static char *meta_of(const struct conn *c) {
    struct text text = {0};
    put(&text, "", 0);
    for (size_t at = 0; at < c->header_count; at++) {
        if (strncasecmp(c->names[at], "x-amz-meta-", 11) == 0) {
            say(&text, "%s: %s\r\n", c->names[at], c->values[at]);
        }
    }
    const char *type = header(c, "content-type");
    say(&text, "Content-Type: %s\r\n", type ? type : "binary/octet-stream");
    return text.at;
}

static int same_tag(const char *asked_for, const char *tag) {
    size_t len = strlen(tag) - 2, quoted = *asked_for == '"';
    int fits = strlen(asked_for) == len + 2 * quoted;
    return strcmp(asked_for, "*") == 0 || (fits && !strncmp(asked_for + quoted, tag + 1, len));
}

// 0, or with which status the conditions of a write refuse it.
static int refusal(const struct conn *c, const struct object *there) {
    const char *match = header(c, "if-match"), *none = header(c, "if-none-match");
    if (match && !there) {
        return 404;
    }
    if ((match && !same_tag(match, there->tag)) || (none && there && same_tag(none, there->tag))) {
        return 412;
    }
    return 0;
}

static void refuse_by(struct conn *c, int status) {
    refuse(c, status, status == 404 ? "NoSuchKey" : "PreconditionFailed");
}

// Puts the object where its name says, if the conditions hold: 0, or the refusing status.
static int commit(struct conn *c, struct object *object) {
    int status = refusal(c, object_named(object->name));
    if (status) {
        drop_object(object);
    } else {
        insert(object);
    }
    return status;
}

// --- What is asked for

static void put_object(struct conn *c, struct body *body) {
    char *meta = meta_of(c), told[256];
    struct object *object = object_of(c->name, meta, 1);
    free(meta);
    add_body(object, body);
    make_tag(c, object->tag);
    make_sum(c, object->sum);
    snprintf(told, sizeof told, "ETag: %s\r\n%s", object->tag, object->sum);
    pthread_mutex_lock(&lock);
    int status = commit(c, object);
    pthread_mutex_unlock(&lock);
    if (status) {
        refuse_by(c, status);
        return;
    }
    stored(body);
    answer(c, 200, told, (struct text){0});
}

static void copy_object(struct conn *c) {
    char *from = strdup(header(c, "x-amz-copy-source")), *meta = meta_of(c);
    decode_url(from, 0);
    const char *how = header(c, "x-amz-metadata-directive");
    int replaces = how && strcasecmp(how, "REPLACE") == 0, status = 404;
    struct text told = xml("CopyObjectResult");
    pthread_mutex_lock(&lock);
    struct object *source = object_named(from + (*from == '/'));
    if (source) {
        struct object *object = object_of(c->name, replaces ? meta : source->meta, source->count);
        for (size_t at = 0; at < source->count; at++) {
            add_body(object, source->bodies[at]);
        }
        strcpy(object->tag, source->tag);
        strcpy(object->sum, source->sum);
        char when[64];
        say_time(when, IN_LISTS, object->when);
        say(&told, "<ETag>%s</ETag><LastModified>%s</LastModified></CopyObjectResult>", object->tag,
            when);
        status = commit(c, object);
    }
    pthread_mutex_unlock(&lock);
    free(from);
    free(meta);
    if (status) {
        free(told.at);
        refuse_by(c, status);
    } else {
        answer(c, 200, "", told);
    }
}

static void send_content(struct conn *c, const struct object *object, long long from,
                         long long len) {
    for (size_t at = 0; at < object->count && len > 0; at++) {
        const struct body *body = object->bodies[at];
        if (from >= body->len) {
            from -= body->len;
            continue;
        }
        while (from < body->len && len > 0) {
            long long most = body->small ? body->len - from : BLOCK - from % BLOCK;
            most = most < body->len - from ? most : body->len - from;
            most = most < len ? most : len;
            if (body->small) {
                if (!send_all(c, body->small + from, (size_t)most, 0)) {
                    return;
                }
            } else {
                off_t start = (off_t)body->blocks[from / BLOCK] * BLOCK + from % BLOCK;
                most = sendfile(c->socket, pool_file, &start, (size_t)most);
                if (most <= 0) {
                    c->is_broken = 1;
                    return;
                }
                atomic_fetch_add(&sent_bytes, most);
            }
            from += most;
            len -= most;
        }
        from = 0;
    }
}

// Reads `bytes=A-B`, `bytes=A-` and `bytes=-N`: whether there is any such part of the object.
static int in_range(const char *range, long long whole, long long *from, long long *len) {
    long long first = -1, last = whole - 1;
    if (range[0] == '-') {
        first = whole - atoll(range + 1);
        first = first < 0 ? 0 : first;
    } else {
        char *end;
        first = strtoll(range, &end, 10);
        if (end[0] == '-' && isdigit((unsigned char)end[1]) && atoll(end + 1) < last) {
            last = atoll(end + 1);
        }
    }
    *from = first;
    *len = last - first + 1;
    return first < whole && last >= first;
}

static void send_object(struct conn *c, const struct object *object) {
    const char *match = header(c, "if-match"), *none = header(c, "if-none-match");
    const char *range = header(c, "range");
    long long from = 0, len = object->len;
    int status = 200, is_head = c->what == HEAD;
    if (match && !same_tag(match, object->tag)) {
        refuse(c, 412, "PreconditionFailed");
        return;
    }
    if (none && same_tag(none, object->tag)) {
        refuse(c, 304, "NotModified");
        return;
    }
    for (size_t at = 0; at < object->count && !is_head; at++) {
        if (object->bodies[at]->is_discarded) {
            refuse(c, 500, "Discarded");
            return;
        }
    }
    struct text text = {0};
    char *part = word(c, "partNumber");
    size_t number = part ? (size_t)atoll(part) : 0;
    free(part);
    if (number >= 1 && number <= object->count) {
        for (size_t at = 0; at + 1 < number; at++) {
            from += object->bodies[at]->len;
        }
        len = object->bodies[number - 1]->len;
        status = 206;
    } else if (range && strncmp(range, "bytes=", 6) == 0) {
        if (!in_range(range + 6, object->len, &from, &len)) {
            refuse(c, 416, "InvalidRange");
            return;
        }
        status = 206;
    }
    char when[64];
    say_time(when, IN_HEADERS, object->when);
    say_head(&text, status, len);
    say(&text, "ETag: %s\r\nLast-Modified: %s\r\nAccept-Ranges: bytes\r\n", object->tag, when);
    if (status == 206) {
        say(&text, "Content-Range: bytes %lld-%lld/%lld\r\n", from, from + len - 1, object->len);
    } else if (header(c, "x-amz-checksum-mode")) {
        say(&text, "%s", object->sum);
    }
    if (number) {
        say(&text, "x-amz-mp-parts-count: %zu\r\n", object->count);
    }
    say(&text, "%s\r\n", object->meta);
    if (send_all(c, text.at, text.len, is_head || !len ? 0 : MSG_MORE) && !is_head) {
        send_content(c, object, from, len);
    }
    free(text.at);
}

static void get_object(struct conn *c) {
    pthread_mutex_lock(&lock);
    struct object *object = object_named(c->name);
    if (object) {
        atomic_fetch_add(&object->refs, 1);
    }
    pthread_mutex_unlock(&lock);
    if (object) {
        send_object(c, object);
        drop_object(object);
    } else {
        refuse(c, 404, "NoSuchKey");
    }
}

static void delete_object(struct conn *c) {
    pthread_mutex_lock(&lock);
    struct object *there = object_named(c->name);
    int status = header(c, "if-match") && there ? refusal(c, there) : 0;
    if (!status) {
        removed(c->name);
    }
    pthread_mutex_unlock(&lock);
    if (status) {
        refuse_by(c, status);
    } else {
        answer(c, 204, "", (struct text){0});
    }
}

// What is between the tags of that name, from `*at` on, which moves behind it; to be freed.
static char *element(const char **at, const char *name) {
    char open[32], shut[32];
    snprintf(open, sizeof open, "<%s>", name);
    snprintf(shut, sizeof shut, "</%s>", name);
    const char *from = strstr(*at, open), *to = from ? strstr(from, shut) : NULL;
    if (!to) {
        return NULL;
    }
    from += strlen(open);
    *at = to + strlen(shut);
    char *found = strndup(from, (size_t)(to - from));
    decode_xml(found);
    return found;
}

// The text of a body, which the request's own XML is; to be freed.
static char *text_of(const struct body *body) {
    char *text = grown(NULL, (size_t)body->len + 1);
    if (body->small) {
        memcpy(text, body->small, (size_t)body->len);
    }
    for (size_t at = 0; at < body->count; at++) {
        size_t len = (size_t)body->len - at * BLOCK;
        memcpy(text + at * BLOCK, block_at(body->blocks[at]), len < BLOCK ? len : BLOCK);
    }
    text[body->len] = 0;
    return text;
}

static void delete_many(struct conn *c, struct body *body) {
    struct text told = xml("DeleteResult");
    char *text = text_of(body), *key;
    const char *at = text;
    int quiet = strstr(text, "<Quiet>true</Quiet>") != NULL;
    pthread_mutex_lock(&lock);
    while ((key = element(&at, "Key"))) {
        struct text name = {0};
        say(&name, "%s/%s", c->bucket, key);
        removed(name.at);
        if (!quiet) {
            say(&told, "<Deleted><Key>");
            say_key(&told, key, 0);
            say(&told, "</Key></Deleted>");
        }
        free(name.at);
        free(key);
    }
    pthread_mutex_unlock(&lock);
    say(&told, "</DeleteResult>");
    free(text);
    answer(c, 200, "", told);
}

static void list_objects(struct conn *c) {
    char *prefix = word(c, "prefix"), *delimiter = word(c, "delimiter");
    char *after = word(c, "start-after"), *token = word(c, "continuation-token");
    char *most = word(c, "max-keys"), *coding = word(c, "encoding-type");
    char *marker = word(c, "marker");
    long limit = most ? atol(most) : PAGE, count = 0;
    limit = limit > PAGE ? PAGE : limit;
    int in_url = coding && strcmp(coding, "url") == 0, more = 0;
    const char *behind = token && *token ? token : after ? after : marker ? marker : "";
    struct text told = xml("ListBucketResult"), from = {0}, last = {0};
    say(&from, "%s/%s", c->bucket, prefix ? prefix : "");
    size_t skip = strlen(c->bucket) + 1, prefix_len = from.len;
    put(&last, behind, strlen(behind));
    say(&told, "<Name>%s</Name><Prefix>", c->bucket);
    say_key(&told, prefix ? prefix : "", in_url);
    say(&told, "</Prefix><MaxKeys>%ld</MaxKeys>%s", limit,
        in_url ? "<EncodingType>url</EncodingType>" : "");
    pthread_mutex_lock(&lock);
    for (size_t at = place_of(from.at); at < object_count; at++) {
        const struct object *object = objects[at];
        const char *key = object->name + skip;
        if (strncmp(object->name, from.at, prefix_len) != 0) {
            break;
        }
        const char *rest = object->name + prefix_len;
        const char *end = delimiter && *delimiter ? strstr(rest, delimiter) : NULL;
        size_t len = end ? (size_t)(end - key) + strlen(delimiter) : strlen(key);
        // Also what a folder holds that was the last of the page before.
        int is_told = last.len && (strcmp(key, last.at) <= 0 ||
                                   (end && last.len == len && strncmp(key, last.at, len) == 0));
        if (is_told) {
            continue;
        }
        if (count == limit) {
            more = 1;
            break;
        }
        count++;
        last.len = 0;
        put(&last, key, len);
        if (end) {
            say(&told, "<CommonPrefixes><Prefix>");
            say_key(&told, last.at, in_url);
            say(&told, "</Prefix></CommonPrefixes>");
            continue;
        }
        char when[64];
        say_time(when, IN_LISTS, object->when);
        say(&told, "<Contents><Key>");
        say_key(&told, key, in_url);
        say(&told, "</Key><LastModified>%s</LastModified><ETag>&quot;%.*s&quot;</ETag>", when,
            (int)strlen(object->tag) - 2, object->tag + 1);
        say(&told, "<Size>%lld</Size><StorageClass>STANDARD</StorageClass>", object->len);
        say(&told, "</Contents>");
    }
    pthread_mutex_unlock(&lock);
    say(&told, "<KeyCount>%ld</KeyCount><IsTruncated>%s</IsTruncated>", count,
        more ? "true" : "false");
    if (more) {
        say(&told, "<NextContinuationToken>");
        say_key(&told, last.at, 0);
        say(&told, "</NextContinuationToken><NextMarker>");
        say_key(&told, last.at, in_url);
        say(&told, "</NextMarker>");
    }
    say(&told, "</ListBucketResult>");
    answer(c, 200, "", told);
    char *done[] = {prefix, delimiter, after, token, most, coding, marker, from.at, last.at};
    for (size_t at = 0; at < sizeof done / sizeof *done; at++) {
        free(done[at]);
    }
}

// --- Multipart uploads

static void create_upload(struct conn *c) {
    struct upload *upload = calloc(1, sizeof *upload);
    if (!upload) {
        fail("memory");
    }
    snprintf(upload->id, sizeof upload->id, "upload-%016llx", atomic_fetch_add(&serial, 1));
    upload->name = strdup(c->name);
    upload->meta = meta_of(c);
    upload->when = time(NULL);
    struct text told = xml("InitiateMultipartUploadResult");
    say(&told, "<Bucket>%s</Bucket><Key>", c->bucket);
    say_key(&told, c->key, 0);
    say(&told, "</Key><UploadId>%s</UploadId></InitiateMultipartUploadResult>", upload->id);
    pthread_mutex_lock(&lock);
    if (upload_count == upload_room) {
        upload_room = 2 * upload_room + 16;
        uploads = grown(uploads, upload_room * sizeof *uploads);
    }
    uploads[upload_count++] = upload;
    pthread_mutex_unlock(&lock);
    answer(c, 200, "", told);
}

// The place of the upload that is asked for; `upload_count` where there is none.
static size_t upload_of(const struct conn *c) {
    char *id = word(c, "uploadId");
    size_t at = 0;
    while (at < upload_count &&
           (strcmp(uploads[at]->id, id) != 0 || strcmp(uploads[at]->name, c->name) != 0)) {
        at++;
    }
    free(id);
    return at;
}

static void put_part(struct conn *c, struct body *body) {
    struct part part = {.body = body};
    char *number = word(c, "partNumber"), told[256];
    part.number = atoi(number);
    free(number);
    make_tag(c, part.tag);
    make_sum(c, part.sum);
    pthread_mutex_lock(&lock);
    size_t found = upload_of(c);
    if (found < upload_count) {
        struct upload *upload = uploads[found];
        size_t at = upload->count;
        while (at && upload->parts[at - 1].number >= part.number) {
            at--;
        }
        atomic_fetch_add(&body->refs, 1);
        if (at < upload->count && upload->parts[at].number == part.number) {
            drop_body(upload->parts[at].body);
        } else {
            if (upload->count == upload->room) {
                upload->room = 2 * upload->room + 16;
                upload->parts = grown(upload->parts, upload->room * sizeof *upload->parts);
            }
            memmove(upload->parts + at + 1, upload->parts + at,
                    (upload->count++ - at) * sizeof *upload->parts);
        }
        upload->parts[at] = part;
    }
    int is_there = found < upload_count;
    pthread_mutex_unlock(&lock);
    if (!is_there) {
        refuse(c, 404, "NoSuchUpload");
        return;
    }
    stored(body);
    snprintf(told, sizeof told, "ETag: %s\r\n%s", part.tag, part.sum);
    answer(c, 200, told, (struct text){0});
}

static void drop_upload_at(size_t at) {
    drop_upload(uploads[at]);
    uploads[at] = uploads[--upload_count];
}

static void complete_upload(struct conn *c, struct body *body) {
    char *text = text_of(body), *number;
    const char *at = text;
    struct object *object = NULL;
    const char *code = NULL;
    int status = 0;
    char tag[48];
    pthread_mutex_lock(&lock);
    size_t found = upload_of(c);
    if (found == upload_count) {
        status = 404, code = "NoSuchUpload";
    } else {
        struct upload *upload = uploads[found];
        object = object_of(c->name, upload->meta, upload->count);
        size_t next = 0;
        while (!status && strstr(at, "<Part>")) {
            const char *part_at = strstr(at, "<Part>");
            const char *tag_at = part_at;
            at = part_at;
            number = element(&at, "PartNumber");
            char *told = element(&tag_at, "ETag");
            at = tag_at > at ? tag_at : at;
            while (number && next < upload->count && upload->parts[next].number < atoi(number)) {
                next++;
            }
            if (!number || !told || next == upload->count ||
                upload->parts[next].number != atoi(number) ||
                !same_tag(told, upload->parts[next].tag)) {
                status = 400, code = "InvalidPart";
            } else {
                add_body(object, upload->parts[next++].body);
            }
            free(number);
            free(told);
        }
        make_tag(c, object->tag);
        snprintf(object->tag + strlen(object->tag) - 1, 12, "-%zu\"", object->count);
        strcpy(tag, object->tag);
        if (status) {
            drop_object(object);
        } else if ((status = commit(c, object))) {
            code = status == 404 ? "NoSuchKey" : "PreconditionFailed";
        } else {
            drop_upload_at(found);
        }
    }
    pthread_mutex_unlock(&lock);
    free(text);
    if (status) {
        refuse(c, status, code);
        return;
    }
    struct text told = xml("CompleteMultipartUploadResult");
    say(&told, "<Bucket>%s</Bucket><Key>", c->bucket);
    say_key(&told, c->key, 0);
    say(&told, "</Key><ETag>%s</ETag></CompleteMultipartUploadResult>", tag);
    answer(c, 200, "", told);
}

static void abort_upload(struct conn *c) {
    pthread_mutex_lock(&lock);
    size_t found = upload_of(c);
    int is_there = found < upload_count;
    if (is_there) {
        drop_upload_at(found);
    }
    pthread_mutex_unlock(&lock);
    if (is_there) {
        answer(c, 204, "", (struct text){0});
    } else {
        refuse(c, 404, "NoSuchUpload");
    }
}

// As an element of a listing: `<ChecksumCRC32>` of `x-amz-checksum-crc32`.
static void say_sum(struct text *text, const char *sum) {
    char name[32] = "";
    if (strlen(sum) < 18) {
        return;
    }
    size_t len = strcspn(sum + 15, ":");
    for (size_t at = 0; at < len && at < sizeof name - 1; at++) {
        name[at] = (char)toupper((unsigned char)sum[15 + at]);
        name[at + 1] = 0;
    }
    const char *value = sum + 15 + len + 1;
    value += strspn(value, " ");
    say(text, "<Checksum%s>%.*s</Checksum%s>", name, (int)strcspn(value, "\r"), value, name);
}

static void list_parts(struct conn *c) {
    char *marker = word(c, "part-number-marker");
    int after = marker ? atoi(marker) : 0, count = 0, last = 0, more = 0;
    free(marker);
    struct text told = xml("ListPartsResult");
    pthread_mutex_lock(&lock);
    size_t found = upload_of(c);
    int is_there = found < upload_count;
    for (size_t at = 0; is_there && at < uploads[found]->count; at++) {
        const struct part *part = &uploads[found]->parts[at];
        if (part->number <= after) {
            continue;
        }
        if (count == PAGE) {
            more = 1;
            break;
        }
        count++;
        char when[64];
        say_time(when, IN_LISTS, uploads[found]->when);
        say(&told, "<Part><PartNumber>%d</PartNumber><LastModified>%s</LastModified>",
            last = part->number, when);
        say(&told, "<ETag>%s</ETag><Size>%lld</Size>", part->tag, part->body->len);
        say_sum(&told, part->sum);
        say(&told, "</Part>");
    }
    pthread_mutex_unlock(&lock);
    if (!is_there) {
        free(told.at);
        refuse(c, 404, "NoSuchUpload");
        return;
    }
    say(&told, "<IsTruncated>%s</IsTruncated>", more ? "true" : "false");
    say(&told, "<NextPartNumberMarker>%d</NextPartNumberMarker></ListPartsResult>", last);
    answer(c, 200, "", told);
}

static void list_uploads(struct conn *c) {
    char *prefix = word(c, "prefix"), *coding = word(c, "encoding-type");
    int in_url = coding && strcmp(coding, "url") == 0;
    struct text told = xml("ListMultipartUploadsResult"), from = {0};
    say(&from, "%s/%s", c->bucket, prefix ? prefix : "");
    say(&told, "<Bucket>%s</Bucket>%s<IsTruncated>false</IsTruncated>", c->bucket,
        in_url ? "<EncodingType>url</EncodingType>" : "");
    pthread_mutex_lock(&lock);
    for (size_t at = 0; at < upload_count; at++) {
        if (strncmp(uploads[at]->name, from.at, from.len) == 0) {
            char when[64];
            say_time(when, IN_LISTS, uploads[at]->when);
            say(&told, "<Upload><Key>");
            say_key(&told, uploads[at]->name + strlen(c->bucket) + 1, in_url);
            say(&told, "</Key><UploadId>%s</UploadId><Initiated>%s</Initiated></Upload>",
                uploads[at]->id, when);
        }
    }
    pthread_mutex_unlock(&lock);
    say(&told, "</ListMultipartUploadsResult>");
    free(prefix);
    free(coding);
    free(from.at);
    answer(c, 200, "", told);
}

// --- Buckets, and what is no S3

static int has_bucket(const char *name) {
    for (size_t at = 0; at < bucket_count; at++) {
        if (strcmp(buckets[at], name) == 0) {
            return 1;
        }
    }
    return 0;
}

static void ask_bucket(struct conn *c) {
    pthread_mutex_lock(&lock);
    int is_there = has_bucket(c->bucket);
    if (!is_there && strcmp(c->method, "PUT") == 0 && bucket_count < 64) {
        strcpy(buckets[bucket_count++], c->bucket);
        is_there = 1;
    }
    pthread_mutex_unlock(&lock);
    if (!is_there) {
        refuse(c, 404, "NoSuchBucket");
    } else if (has_word(c, "location")) {
        struct text told = xml("LocationConstraint");
        say(&told, "us-east-1</LocationConstraint>");
        answer(c, 200, "", told);
    } else if (strcmp(c->method, "DELETE") == 0) {
        answer(c, 204, "", (struct text){0});
    } else {
        answer(c, 200, "x-amz-bucket-region: us-east-1\r\n", (struct text){0});
    }
}

static void control(struct conn *c) {
    struct text told = {0};
    if (strcmp(c->path, "/-/reset") == 0) {
        for (int at = 0; at < KINDS; at++) {
            asked[at] = busy_ns[at] = 0;
        }
        received_bytes = sent_bytes = refused = stored_bytes = repeated_bytes = stored_count = 0;
        tracking = has_word(c, "track");
        pthread_mutex_lock(&seen_lock);
        memset(seen, 0, sizeof seen);
        pthread_mutex_unlock(&seen_lock);
    } else if (strcmp(c->path, "/-/empty") == 0) {
        pthread_mutex_lock(&lock);
        while (object_count) {
            drop_object(objects[--object_count]);
        }
        while (upload_count) {
            drop_upload_at(upload_count - 1);
        }
        pthread_mutex_unlock(&lock);
    }
    say(&told, "{\"received_bytes\": %lld, \"sent_bytes\": %lld, \"refused\": %lld, ",
        (long long)received_bytes, (long long)sent_bytes, (long long)refused);
    say(&told, "\"stored_bytes\": %lld, \"stored\": %lld, \"repeated_bytes\": %lld, ",
        (long long)stored_bytes, (long long)stored_count, (long long)repeated_bytes);
    pthread_mutex_lock(&lock);
    say(&told, "\"objects\": %zu, \"uploads\": %zu, \"asked\": {", object_count, upload_count);
    pthread_mutex_unlock(&lock);
    for (int at = 0; at < CONTROL; at++) {
        say(&told, "%s\"%s\": [%lld, %.6f]", at ? ", " : "", NAMES[at], (long long)asked[at],
            (double)busy_ns[at] / 1e9);
    }
    say(&told, "}}\n");
    answer(c, 200, "", told);
}

static enum what what_of(const struct conn *c) {
    const char *method = c->method;
    int puts = !strcmp(method, "PUT"), gets = !strcmp(method, "GET");
    int posts = !strcmp(method, "POST");
    if (strncmp(c->path, "/-/", 3) == 0) {
        return CONTROL;
    }
    if (!*c->key) {
        return posts && has_word(c, "delete")                       ? DELETE_MANY
               : gets && has_word(c, "uploads")                     ? LIST_UPLOADS
               : has_word(c, "versioning") || has_word(c, "policy") ? OTHER
               : !gets || has_word(c, "location")                   ? BUCKET
               : *c->bucket                                         ? LIST
                                                                    : OTHER;
    }
    int is_upload = has_word(c, "uploadId");
    return puts && is_upload && has_word(c, "partNumber") ? PART
           : puts && header(c, "x-amz-copy-source")       ? COPY
           : puts                                         ? PUT
           : posts && is_upload                           ? COMPLETE
           : posts && has_word(c, "uploads")              ? CREATE
           : gets && is_upload                            ? LIST_PARTS
           : gets                                         ? GET
           : !strcmp(method, "HEAD")                      ? HEAD
           : !strcmp(method, "DELETE")                    ? (is_upload ? ABORT : DELETE)
                                                          : OTHER;
}

static void handle(struct conn *c, struct body *body) {
    pthread_mutex_lock(&lock);
    int is_there = has_bucket(c->bucket);
    pthread_mutex_unlock(&lock);
    if (!is_there && c->what != BUCKET && c->what != CONTROL) {
        refuse(c, 404, "NoSuchBucket");
        return;
    }
    switch (c->what) {
    case PUT: put_object(c, body); break;
    case GET:
    case HEAD: get_object(c); break;
    case DELETE: delete_object(c); break;
    case DELETE_MANY: delete_many(c, body); break;
    case LIST: list_objects(c); break;
    case CREATE: create_upload(c); break;
    case PART: put_part(c, body); break;
    case COMPLETE: complete_upload(c, body); break;
    case ABORT: abort_upload(c); break;
    case LIST_PARTS: list_parts(c); break;
    case LIST_UPLOADS: list_uploads(c); break;
    case COPY: copy_object(c); break;
    case BUCKET: ask_bucket(c); break;
    case CONTROL: control(c); break;
    default: refuse(c, 501, "NotImplemented");
    }
}

// --- Connections

// Reads until the headers are there whole: their end, or NULL.
static char *read_headers(struct conn *c) {
    memmove(c->buffer, c->buffer + c->start, c->end - c->start);
    c->end -= c->start;
    c->start = 0;
    for (;;) {
        c->buffer[c->end] = 0;
        char *end = strstr(c->buffer, "\r\n\r\n");
        if (end) {
            return end;
        }
        if (c->end == BUFFER) {
            return NULL;
        }
        ssize_t got = get_some(c, c->buffer + c->end, BUFFER - c->end);
        if (got <= 0) {
            return NULL;
        }
        c->end += (size_t)got;
    }
}

// Takes the headers apart, in a copy of them, which the caller frees: NULL where there are no more.
static char *parse(struct conn *c) {
    char *end = read_headers(c);
    if (!end) {
        return NULL;
    }
    char *head = strndup(c->buffer, (size_t)(end - c->buffer)), *rest = head;
    c->start = (size_t)(end + 4 - c->buffer);
    char *line = strsep(&rest, "\r"), *words = line;
    c->method = strsep(&words, " ");
    c->path = strsep(&words, " ");
    c->header_count = 0;
    while (rest && c->header_count < HEADERS_MAX && (line = strsep(&rest, "\r"))) {
        char *name = line + (*line == '\n'), *value = strchr(name, ':');
        if (value) {
            *value++ = 0;
            c->names[c->header_count] = name;
            c->values[c->header_count++] = value + strspn(value, " ");
        }
    }
    if (!c->path || *c->path != '/') {
        free(head);
        return NULL;
    }
    c->query = strchr(c->path, '?');
    if (c->query) {
        *c->query++ = 0;
    }
    decode_url(c->path, 0);
    size_t len = strcspn(c->path + 1, "/");
    snprintf(c->bucket, sizeof c->bucket, "%.*s", (int)len, c->path + 1);
    c->name = c->path + 1;
    c->key = c->name + len + (c->name[len] == '/');
    return head;
}

static void prepare_body(struct conn *c) {
    const char *len = header(c, "content-length"), *transfer = header(c, "transfer-encoding");
    const char *sha = header(c, "x-amz-content-sha256"), *coding = header(c, "content-encoding");
    memset(c->layers, 0, sizeof c->layers);
    *c->trailer = 0;
    c->layers[1].on = transfer && strcasecmp(transfer, "chunked") == 0;
    c->layers[2].on = (sha && strncmp(sha, "STREAMING-", 10) == 0) ||
                      (coding && strstr(coding, "aws-chunked") != NULL);
    c->left = c->layers[1].on ? -1 : len ? atoll(len) : 0;
    c->layers[2].on = c->layers[2].on && c->left != 0;
    const char *expect = header(c, "expect");
    if (expect && strcasecmp(expect, "100-continue") == 0) {
        static const char GO_ON[] = "HTTP/1.1 100 Continue\r\n\r\n";
        send_all(c, GO_ON, sizeof GO_ON - 1, 0);
    }
}

static void *serve(void *of) {
    struct conn *c = of;
    char *head;
    while (!c->is_broken && (head = parse(c))) {
        prepare_body(c);
        c->what = what_of(c);
        struct body *body = read_body(c);
        if (body) {
            double began = now();
            atomic_fetch_add(&asked[c->what], c->what != CONTROL);
            handle(c, body);
            atomic_fetch_add(&busy_ns[c->what], (long long)((now() - began) * 1e9));
            drop_body(body);
        }
        const char *stays = header(c, "connection");
        c->is_broken |= stays && strcasecmp(stays, "close") == 0;
        free(head);
    }
    close(c->socket);
    free(c);
    return NULL;
}

static void *end_with_input(void *unused) {
    (void)unused;
    char one;
    while (read(STDIN_FILENO, &one, 1) > 0) {
    }
    exit(0);
}

int main(int count, char **words) {
    long long warm_mib = 0;
    for (int at = 1; at + 1 < count; at += 2) {
        if (strcmp(words[at], "--warm") == 0) {
            warm_mib = atoll(words[at + 1]);
        } else if (strcmp(words[at], "--discard") == 0) {
            discard_from = atoll(words[at + 1]);
        }
    }
    signal(SIGPIPE, SIG_IGN);
    open_pool(warm_mib);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    if (listener < 0 || bind(listener, (void *)&at, len) < 0 || listen(listener, 1024) < 0 ||
        getsockname(listener, (void *)&at, &len) < 0) {
        fail("listen");
    }
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port));
    fflush(stdout);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    if (pthread_create(&thread, &small, end_with_input, NULL)) {
        fail("thread");
    }
    for (;;) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c || (c->socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0) {
            fail("accept");
        }
        setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        if (pthread_create(&thread, &small, serve, c)) {
            fail("thread");
        }
    }
}
