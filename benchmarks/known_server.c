// A server of known timing, as simple and as fast as it can be made: the ground truth of the
// benchmarks. It shares no code with loadgen or its embedded engine.
//
//   known_server PORT TTFT_US GAP_US
//
// POST to any path: the first token comes TTFT_US after the read that completed the request, and
// token k comes k * GAP_US later, on an absolute schedule; GAP_US 0 writes as fast as the sockets
// take it. max_tokens is read from the body. Events look like vLLM's, with usage in each.
// GET answers /health, /version and /v1/models; GET /lateness gives how late the writes were.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 8192
#define READ_BYTES (1 << 20)
#define SPIN_NS 150000

static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"known\",\"object\":\"model\",\"created\":1,"
    "\"owned_by\":\"vllm\",\"root\":\"known\",\"max_model_len\":1000000}]}";

typedef struct {
    char *in;           // request bytes so far
    size_t in_len, in_cap;
    size_t need;        // whole request's size, 0 until the head is there
    char *out;          // bytes that the socket did not take
    size_t out_len, out_at;
    int64_t arrival_ns, due_ns;
    long emitted, wanted, prompt_tokens, id;
    int chat, usage, continuous, active;
    long heap_at;       // place in the heap, -1 when not scheduled
} Conn;

static Conn *conns[MAX_FD];
static int heap[MAX_FD];
static long heap_len;
static int ep;
static int64_t ttft_ns, gap_ns;
static double late_sum; static int64_t late_max; static long late_count;
static char buffer[READ_BYTES];
static long ids;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int before(long a, long b) { return conns[heap[a]]->due_ns < conns[heap[b]]->due_ns; }
static void swap(long a, long b) {
    int fd = heap[a]; heap[a] = heap[b]; heap[b] = fd;
    conns[heap[a]]->heap_at = a; conns[heap[b]]->heap_at = b;
}
static void up(long i) { while (i && before(i, (i - 1) / 2)) { swap(i, (i - 1) / 2); i = (i - 1) / 2; } }
static void down(long i) {
    for (;;) {
        long c = 2 * i + 1;
        if (c >= heap_len) return;
        if (c + 1 < heap_len && before(c + 1, c)) c++;
        if (!before(c, i)) return;
        swap(c, i); i = c;
    }
}
static void schedule(int fd) {
    Conn *c = conns[fd];
    if (c->heap_at < 0) { c->heap_at = heap_len; heap[heap_len++] = fd; up(c->heap_at); }
    else { up(c->heap_at); down(c->heap_at); }
}
static void unschedule(int fd) {
    long i = conns[fd]->heap_at;
    if (i < 0) return;
    swap(i, --heap_len);
    conns[fd]->heap_at = -1;
    if (i < heap_len) { up(i); down(i); }
}

static void drop(int fd) {
    Conn *c = conns[fd];
    if (!c) return;
    unschedule(fd);
    close(fd);
    free(c->in); free(c->out); free(c);
    conns[fd] = NULL;
}

static void put(int fd, const char *data, size_t len) {
    Conn *c = conns[fd];
    size_t sent = 0;
    if (!c->out_len) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) { drop(fd); return; }
        sent = n < 0 ? 0 : (size_t)n;
        if (sent == len) return;
    }
    c->out = realloc(c->out, c->out_len + len - sent);
    memcpy(c->out + c->out_len, data + sent, len - sent);
    c->out_len += len - sent;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.fd = fd};
    epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

static void flush(int fd) {
    Conn *c = conns[fd];
    ssize_t n = send(fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
    if (n < 0) { if (errno != EAGAIN) drop(fd); return; }
    c->out_at += n;
    if (c->out_at < c->out_len) return;
    free(c->out); c->out = NULL; c->out_len = c->out_at = 0;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

static int chunk(char *to, const char *event, int len) {
    int n = sprintf(to, "%x\r\n", len);
    memcpy(to + n, event, len);
    memcpy(to + n + len, "\r\n", 2);
    return n + len + 2;
}

// Writes the next `count` tokens, an event each, with one system call.
static void tokens(int fd, int count) {
    Conn *c = conns[fd];
    char event[1024], out[16 * 1024];
    int n = 0, len, last = 0;
    const char *object = c->chat ? "chat.completion.chunk" : "text_completion";
    if (c->chat && !c->emitted) {
        len = sprintf(event, "data: {\"id\":\"cmpl-%ld\",\"object\":\"%s\",\"created\":1,\"model\":\"known\",\"choices\":"
            "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n", c->id, object);
        n += chunk(out + n, event, len);
    }
    char usage[160];
    for (; count && !last; count--) {
    c->emitted++;
    last = c->emitted >= c->wanted;
    sprintf(usage, "\"usage\":{\"prompt_tokens\":%ld,\"total_tokens\":%ld,\"completion_tokens\":%ld}",
            c->prompt_tokens, c->prompt_tokens + c->emitted, c->emitted);
    len = sprintf(event, "data: {\"id\":\"cmpl-%ld\",\"object\":\"%s\",\"created\":1,\"model\":\"known\",\"choices\":"
        "[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null}]%s%s}\n\n",
        c->id, object, c->chat ? "\"delta\":{\"content\":\" token\"}" : "\"text\":\" token\"",
        last ? "\"length\"" : "null", c->continuous ? "," : "", c->continuous ? usage : "");
    n += chunk(out + n, event, len);
    }
    if (last) {
        c->active = 0;
        if (c->usage) {
            len = sprintf(event, "data: {\"id\":\"cmpl-%ld\",\"object\":\"%s\",\"created\":1,\"model\":\"known\","
                          "\"choices\":[],%s}\n\n", c->id, object, usage);
            n += chunk(out + n, event, len);
        }
        n += chunk(out + n, "data: [DONE]\n\n", 14);
        memcpy(out + n, "0\r\n\r\n", 5); n += 5;
    }
    put(fd, out, n);
}

static void reply(int fd, const char *body) {
    char out[2048];
    put(fd, out, sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                         strlen(body), body));
}

static long number_after(const char *text, const char *key, long otherwise) {
    const char *at = strstr(text, key);
    return at ? atol(at + strlen(key)) : otherwise;
}

// One whole request is in c->in, NUL-terminated.
static void request(int fd) {
    Conn *c = conns[fd];
    if (!strncmp(c->in, "GET ", 4)) {
        char text[256];
        if (!strncmp(c->in, "GET /lateness", 13)) {
            sprintf(text, "{\"count\":%ld,\"mean_s\":%.9f,\"max_s\":%.9f}", late_count,
                    late_count ? late_sum / late_count / 1e9 : 0, late_max / 1e9);
            late_count = 0; late_sum = 0; late_max = 0;
            reply(fd, text);
        } else reply(fd, strstr(c->in, "/v1/models ") ? MODELS : "{\"version\":\"known\"}");
        return;
    }
    char *body = strstr(c->in, "\r\n\r\n") + 4;
    c->chat = memmem(c->in, body - c->in, "/chat/", 6) != NULL;
    // Keys stand before or after a prompt that may be long; look at both ends.
    size_t len = c->in_len - (body - c->in);
    char ends[4097];
    size_t head = len < 2048 ? len : 2048, tail = len - head < 2048 ? len - head : 2048;
    memcpy(ends, body, head);
    memcpy(ends + head, c->in + c->in_len - tail, tail);
    ends[head + tail] = 0;
    for (char *a = ends, *b = ends;; a++) { if (*a != ' ') *b++ = *a; if (!*a) break; }
    c->wanted = number_after(ends, "\"max_tokens\":", number_after(ends, "\"max_completion_tokens\":", 16));
    c->usage = strstr(ends, "\"include_usage\":true") != NULL;
    c->continuous = c->usage && strstr(ends, "\"continuous_usage_stats\":true") != NULL;
    c->prompt_tokens = 1;
    char *ids_at = strstr(body, "\"prompt\":[");
    if (!ids_at) ids_at = strstr(body, "\"prompt\": [");
    if (ids_at) for (char *p = ids_at; *p && *p != ']'; p++) c->prompt_tokens += *p == ',';
    c->id = ++ids;
    c->emitted = 0;
    c->active = 1;
    c->due_ns = c->arrival_ns + ttft_ns;
    static const char headers[] = "HTTP/1.1 200 OK\r\nserver: known\r\n"
        "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    put(fd, headers, sizeof headers - 1);
    if (conns[fd]) schedule(fd);
}

static void take(int fd, int64_t stamp, const char *data, size_t n) {
    Conn *c = conns[fd];
    if (c->in_len + n + 1 > c->in_cap) {
        c->in_cap = (c->in_len + n + 1) * 2;
        c->in = realloc(c->in, c->in_cap);
    }
    memcpy(c->in + c->in_len, data, n);
    c->in_len += n;
    c->in[c->in_len] = 0;
    if (!c->need) {
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return;
        char *length = strcasestr(c->in, "\r\ncontent-length:");
        c->need = end + 4 - c->in + (length && length < end ? strtoul(length + 17, NULL, 10) : 0);
    }
    if (c->in_len >= c->need) {
        c->arrival_ns = stamp;
        request(fd);
        if (conns[fd]) { c->in_len = 0; c->need = 0; }
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: known_server PORT TTFT_US GAP_US\n"), 2;
    ttft_ns = atol(argv[2]) * 1000; gap_ns = atol(argv[3]) * 1000;
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, 15);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return perror("listen"), 1;
    socklen_t size = sizeof address;
    getsockname(listener, (void *)&address, &size);
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, ready[1024];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int64_t now = now_ns();
        for (int fired = 0; fired < 16 && heap_len && conns[heap[0]]->due_ns <= now; fired++) {
            int fd = heap[0];
            Conn *c = conns[fd];
            if (gap_ns == 0 && c->out_len) { c->due_ns = now + 20000; schedule(fd); continue; }
            if (gap_ns) {
                int64_t late = now - c->due_ns;
                late_sum += late; late_count++;
                if (late > late_max) late_max = late;
            }
            // Unpaced, several events go out before the others get their turn.
            tokens(fd, gap_ns ? 1 : 16);
            if (conns[fd]) {
                if (c->active) { c->due_ns = gap_ns ? c->due_ns + gap_ns : now; schedule(fd); }
                else unschedule(fd);
            }
            now = now_ns();
        }
        int64_t wait = heap_len ? conns[heap[0]]->due_ns - now_ns() - SPIN_NS : 1000000000;
        if (wait > 0) {
            fd_set set;
            FD_ZERO(&set); FD_SET(ep, &set);
            struct timespec t = {wait / 1000000000, wait % 1000000000};
            pselect(ep + 1, &set, NULL, NULL, &t, NULL);
        }
        int n = epoll_wait(ep, ready, 1024, 0);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int got;
                while ((got = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (got >= MAX_FD) { close(got); continue; }
                    setsockopt(got, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conns[got] = calloc(1, sizeof(Conn));
                    conns[got]->heap_at = -1;
                    struct epoll_event g = {.events = EPOLLIN, .data.fd = got};
                    epoll_ctl(ep, EPOLL_CTL_ADD, got, &g);
                }
                continue;
            }
            if (!conns[fd]) continue;
            if (ready[i].events & EPOLLOUT) flush(fd);
            if (!conns[fd] || !(ready[i].events & ~EPOLLOUT)) continue;
            ssize_t got = recv(fd, buffer, sizeof buffer - 1, 0);
            if (got > 0) take(fd, now_ns(), buffer, got);
            else if (got == 0 || errno != EAGAIN) drop(fd);
        }
    }
}
