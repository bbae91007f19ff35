/* An OpenAI-compatible server that costs next to nothing, for measuring clients.
 *
 * One thread, epoll, HTTP/1.1 with kept-alive connections, loopback only. It listens on a free port, prints it, and
 * ends when its standard input does. Answers are written once and sent from memory. What a request gets is in the
 * path before /chat/completions, so that every client can ask for it by its base address:
 *
 *     http://127.0.0.1:PORT/chunks256/wait50/v1
 *
 *     chunksN   an answer of N pieces, each an event of its own where it is streamed (256)
 *     waitN     N milliseconds before the first byte (0)
 *     paceN     N milliseconds between two pieces of a stream, or between two bytes of a drip (0: all in one write)
 *     cacheN    account for a prefix cache of N blocks, and report it as usage.prompt_tokens_details
 *     hang      no answer
 *     drip      the answer byte by byte
 *     json      the pieces are a JSON object with one field instead of a joint profile
 *
 * A body with "stream":true is answered with events, one HTTP chunk each; one with "logprobs":true with one token and
 * ten alternatives; any other with the whole text. GET /counters gives counters, GET /zero gives them and sets them to
 * zero.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FDS = 20000, MOST_REQUEST = 4 << 20, SLOTS = 4096, BLOCK = 64, MOST_BLOCKS = 1 << 16 };

typedef struct {
    int chunks, wait, pace, cache, hang, drip, json;
} Wish;

/* An answer as it goes over the wire. Piece i ends at ends[i]. */
typedef struct Answer {
    struct Answer *next;
    int chunks, kind, json;
    char *bytes;
    size_t length, room;
    size_t *ends;
    int pieces;
    size_t prompt_at, cached_at; /* where the two counts of the usage stand, as ten blanks */
} Answer;

enum { WHOLE, SCORED, STREAMED, STREAMED_WITH_USAGE };

typedef struct Client {
    int fd;
    char *in;
    size_t have, room;
    int answering, blocked, counted; /* who only asks for counters is not counted */
    Wish wish;
    const char *bytes;  /* what is being sent: an answer's bytes, or `own` */
    char *own;
    size_t sent, released, length;
    const Answer *answer; /* NULL for counters */
    int piece;
    struct Client *later; /* the next one in its slot of the clock */
    uint64_t due;
    int waits, gone;
} Client;

static struct {
    uint64_t requests, finished, cut, opened, bytes_out, prompt_chars, cached_chars, last_close_ns;
    int open, busy, most_busy;
} counts;

static Client *clients[MOST_FDS];
static Client *slots[SLOTS];
static int waiting;
static uint64_t clock_ms;
static Answer *answers;
static int poller;

static void *must(void *memory) {
    if (!memory) { perror("memory"); exit(1); }
    return memory;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- the clock: a wheel of milliseconds ---- */

static void wake_in(Client *client, int milliseconds) {
    client->due = clock_ms + (uint64_t)(milliseconds > 0 ? milliseconds : 1);
    client->waits = 1;
    client->later = slots[client->due % SLOTS];
    slots[client->due % SLOTS] = client;
    waiting++;
}

static void release(Client *client);

/* Whoever is due goes on; a later round of the wheel goes back into it; who has hung up is forgotten. */
static void turn_clock(void) {
    uint64_t now = now_ns() / 1000000u;
    while (clock_ms < now && waiting) {
        Client *client = slots[++clock_ms % SLOTS], *later;
        slots[clock_ms % SLOTS] = NULL;
        for (; client; client = later) {
            later = client->later;
            waiting--;
            client->waits = 0;
            if (client->gone) free(client);
            else if (client->due > clock_ms) wake_in(client, (int)(client->due - clock_ms));
            else release(client);
        }
    }
    clock_ms = now;
}

/* ---- the prefix cache: blocks under the hash of all that stands before and in them, the oldest use goes first ---- */

typedef struct {
    uint64_t key;
    int newer, older, chain;
} Block;

static Block blocks[MOST_BLOCKS];
static int heads[MOST_BLOCKS], used_blocks, newest = -1, oldest = -1;

static void unlink_block(int i) {
    if (blocks[i].newer >= 0) blocks[blocks[i].newer].older = blocks[i].older; else newest = blocks[i].older;
    if (blocks[i].older >= 0) blocks[blocks[i].older].newer = blocks[i].newer; else oldest = blocks[i].newer;
}

static void make_newest(int i) {
    blocks[i].older = newest;
    blocks[i].newer = -1;
    if (newest >= 0) blocks[newest].newer = i; else oldest = i;
    newest = i;
}

static int find_block(uint64_t key) {
    for (int i = heads[key % MOST_BLOCKS] - 1; i >= 0; i = blocks[i].chain - 1)
        if (blocks[i].key == key) return i;
    return -1;
}

static void drop_from_chain(int i) {
    int *at = &heads[blocks[i].key % MOST_BLOCKS];
    while (*at - 1 != i) at = &blocks[*at - 1].chain;
    *at = blocks[i].chain;
}

static void add_block(uint64_t key, int most) {
    int i;
    if (used_blocks < most) i = used_blocks++;
    else { i = oldest; unlink_block(i); drop_from_chain(i); }
    blocks[i].key = key;
    blocks[i].chain = heads[key % MOST_BLOCKS];
    heads[key % MOST_BLOCKS] = i + 1;
    make_newest(i);
}

static void empty_cache(void) {
    memset(heads, 0, sizeof heads);
    used_blocks = 0;
    newest = oldest = -1;
}

/* How many characters of a prompt's beginning the cache holds; all of its blocks are in it from then on. */
static size_t cached(const char *prompt, size_t length, int most) {
    uint64_t key = 1469598103934665603u;
    size_t found = 0;
    int unbroken = 1;
    for (size_t at = 0; at + BLOCK <= length; at += BLOCK) {
        for (int i = 0; i < BLOCK; i++) key = (key ^ (unsigned char)prompt[at + (size_t)i]) * 1099511628211u;
        int i = find_block(key);
        if (i >= 0) {
            unlink_block(i);
            make_newest(i);
            if (unbroken) found += BLOCK;
        } else {
            unbroken = 0;
            add_block(key, most);
        }
    }
    return found;
}

/* ---- answers ---- */

static void append(Answer *answer, const char *format, ...) {
    for (;;) {
        va_list values;
        va_start(values, format);
        size_t left = answer->room - answer->length;
        size_t wanted = (size_t)vsnprintf(answer->bytes + answer->length, left, format, values);
        va_end(values);
        if (wanted < left) { answer->length += wanted; return; }
        answer->room = answer->room * 2 + wanted;
        answer->bytes = must(realloc(answer->bytes, answer->room));
    }
}

/* Piece i of n of a text in the form of a joint profile. Each tag is cut in two, as tokens cut it. */
static const char *profile_piece(int i, int n) {
    static const char *openings[] = {"<user_profile>\\n<cue>", "<constructed_prompt>", "<profile>",
                                     "<item_profile>\\n<cue>", "<constructed_prompt>", "<profile>"};
    static const char *closings[] = {"</cue>\\n", "</constructed_prompt>\\n", "</profile>\\n</user_profile>\\n",
                                     "</cue>\\n", "</constructed_prompt>\\n", "</profile>\\n</item_profile>"};
    static char piece[64];
    int section = 0;
    while (section < 5 && i >= (section + 1) * n / 6) section++;
    int from = section * n / 6, to = (section + 1) * n / 6;
    const char *opening = openings[section], *closing = closings[section];
    if (i == from) snprintf(piece, sizeof piece, "%.4s", opening);
    else if (i == from + 1) snprintf(piece, sizeof piece, "%s", opening + 4);
    else if (i == to - 2) snprintf(piece, sizeof piece, "%.3s", closing);
    else if (i == to - 1) snprintf(piece, sizeof piece, "%s", closing + 3);
    else snprintf(piece, sizeof piece, " word%d", i % 10);
    return piece;
}

static const char *piece_of(int i, int n, int json) {
    static char piece[32];
    if (!json) return profile_piece(i, n);
    snprintf(piece, sizeof piece, i == 0 ? "{\\\"text\\\": \\\"" : i == n - 1 ? "\\\"}" : " word%d", i % 10);
    return piece;
}

static void event(Answer *answer, const char *format, ...) {
    char data[512];
    va_list values;
    va_start(values, format);
    vsnprintf(data, sizeof data, format, values);
    va_end(values);
    append(answer, "%zx\r\ndata: %s\n\n\r\n", strlen(data) + 8, data);
    answer->ends[answer->pieces++] = answer->length;
}

#define ABOUT "\"id\":\"chatcmpl-00112233445566778899aabbccddeeff\",\"object\":\"chat.completion%s\",\"created\":1790000000,\"model\":\"mock\","
#define USAGE "\"usage\":{\"prompt_tokens\":%10d,\"total_tokens\":1000,\"completion_tokens\":%d," \
              "\"prompt_tokens_details\":{\"cached_tokens\":%10d}}"
#define HEAD "HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 12:00:00 GMT\r\nserver: mock\r\n"

static void write_stream(Answer *answer) {
    int n = answer->chunks;
    answer->ends = must(calloc((size_t)n + 5, sizeof *answer->ends));
    append(answer, HEAD "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    event(answer, "{" ABOUT "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                  "\"logprobs\":null,\"finish_reason\":null}]}", ".chunk");
    for (int i = 0; i < n; i++)
        event(answer, "{" ABOUT "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,"
                      "\"finish_reason\":null}]}", ".chunk", piece_of(i, n, answer->json));
    event(answer, "{" ABOUT "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":null,"
                  "\"finish_reason\":\"stop\",\"stop_reason\":null}]}", ".chunk");
    if (answer->kind == STREAMED_WITH_USAGE) event(answer, "{" ABOUT "\"choices\":[]," USAGE "}", ".chunk", 100, n, 0);
    event(answer, "[DONE]");
    append(answer, "0\r\n\r\n");
    answer->ends[answer->pieces - 1] = answer->length;
}

static void write_whole(Answer *answer) {
    Answer body = {.room = 1024, .bytes = must(malloc(1024))};
    append(&body, "{" ABOUT "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"", "");
    if (answer->kind == SCORED) append(&body, "4");
    else for (int i = 0; i < answer->chunks; i++) append(&body, "%s", piece_of(i, answer->chunks, answer->json));
    append(&body, "\",\"refusal\":null,\"tool_calls\":[]},\"logprobs\":");
    if (answer->kind == SCORED) {
        append(&body, "{\"content\":[{\"token\":\"4\",\"logprob\":-0.4,\"bytes\":[52],\"top_logprobs\":[");
        for (int i = 0; i < 10; i++)
            append(&body, "%s{\"token\":\"%d\",\"logprob\":%.7f,\"bytes\":[%d]}", i ? "," : "", (i + 4) % 10, -0.4 - 0.9 * i,
                   48 + (i + 4) % 10);
        append(&body, "]}]}");
    } else append(&body, "null");
    append(&body, ",\"finish_reason\":\"stop\",\"stop_reason\":null}],");
    size_t usage_at = body.length;
    append(&body, USAGE ",\"prompt_logprobs\":null}", 0, answer->kind == SCORED ? 1 : answer->chunks, 0);
    append(answer, HEAD "content-type: application/json\r\ncontent-length: %zu\r\n\r\n", body.length);
    size_t start = answer->length;
    append(answer, "%s", body.bytes);
    const char *usage = answer->bytes + start + usage_at;
    answer->prompt_at = (size_t)(strstr(usage, "prompt_tokens\":") + 15 - answer->bytes);
    answer->cached_at = (size_t)(strstr(usage, "cached_tokens\":") + 15 - answer->bytes);
    answer->ends = must(malloc(sizeof *answer->ends));
    answer->ends[0] = answer->length;
    answer->pieces = 1;
    free(body.bytes);
}

static const Answer *answer_for(int kind, int chunks, int json) {
    for (Answer *old = answers; old; old = old->next)
        if (old->kind == kind && old->chunks == chunks && old->json == json) return old;
    Answer *answer = must(calloc(1, sizeof *answer));
    *answer = (Answer){.next = answers, .kind = kind, .chunks = chunks, .json = json, .room = 4096};
    answer->bytes = must(malloc(answer->room));
    answers = answer;
    if (kind == STREAMED || kind == STREAMED_WITH_USAGE) write_stream(answer);
    else write_whole(answer);
    return answer;
}

/* ---- clients ---- */

static void next_request(Client *client);

static void watch(Client *client, int writing) {
    client->blocked = writing;
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLRDHUP | (writing ? EPOLLOUT : 0), .data.fd = client->fd};
    epoll_ctl(poller, EPOLL_CTL_MOD, client->fd, &wanted);
}

static void hang_up(Client *client) {
    if (client->answering) { counts.cut++; counts.busy--; }
    if (client->counted) { counts.open--; counts.last_close_ns = now_ns(); }
    clients[client->fd] = NULL;
    close(client->fd);
    free(client->in);
    free(client->own);
    if (client->waits) client->gone = 1;
    else free(client);
}

/* Send what is released. The client may be gone afterwards. */
static void send_released(Client *client) {
    while (client->sent < client->released) {
        ssize_t took = send(client->fd, client->bytes + client->sent, client->released - client->sent, MSG_NOSIGNAL);
        if (took < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!client->blocked) watch(client, 1);
            return;
        }
        if (took < 0) { hang_up(client); return; }
        client->sent += (size_t)took;
        if (client->answering) counts.bytes_out += (uint64_t)took;
    }
    if (client->blocked) watch(client, 0);
    if (client->sent < client->length) return;
    if (client->answering) { client->answering = 0; counts.busy--; counts.finished++; }
    next_request(client);
}

/* Release the next piece, or all, and set the clock for the one after it. */
static void release(Client *client) {
    const Answer *answer = client->answer;
    if (client->wish.drip) client->released++;
    else if (!client->wish.pace) client->released = client->length;
    else client->released = answer->ends[client->piece++];
    if (client->released < client->length) wake_in(client, client->wish.pace);
    send_released(client);
}

static void own_bytes(Client *client, const char *bytes, size_t length) {
    client->own = must(realloc(client->own, length + 1));
    memcpy(client->own, bytes, length);
    client->bytes = client->own;
}

static void send_counters(Client *client, int reset) {
    char body[640], reply[1024];
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    double cpu = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) + 1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
    int size = snprintf(body, sizeof body,
        "{\"requests\":%llu,\"finished\":%llu,\"cut\":%llu,\"opened\":%llu,\"open\":%d,\"busy\":%d,\"most_busy\":%d,"
        "\"bytes_out\":%llu,\"prompt_chars\":%llu,\"cached_chars\":%llu,\"last_close_ns\":%llu,\"cpu\":%.6f}",
        (unsigned long long)counts.requests, (unsigned long long)counts.finished, (unsigned long long)counts.cut,
        (unsigned long long)counts.opened, counts.open, counts.busy, counts.most_busy,
        (unsigned long long)counts.bytes_out, (unsigned long long)counts.prompt_chars,
        (unsigned long long)counts.cached_chars, (unsigned long long)counts.last_close_ns, cpu);
    int whole = snprintf(reply, sizeof reply, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
                         size, body);
    if (reset) {
        int open = counts.open, busy = counts.busy;
        memset(&counts, 0, sizeof counts);
        counts.open = open;
        counts.busy = busy;
        empty_cache();
    }
    own_bytes(client, reply, (size_t)whole);
    client->answer = NULL;
    client->released = client->length = (size_t)whole;
    send_released(client);
}

static int has_option(const char *segment, size_t length, const char *name, int *value) {
    size_t size = strlen(name);
    if (length <= size || strncmp(segment, name, size) || segment[size] < '0' || segment[size] > '9') return 0;
    *value = atoi(segment + size);
    return 1;
}

static Wish read_wish(const char *path, const char *end) {
    Wish wish = {.chunks = 256};
    while (path < end) {
        const char *stop = memchr(path, '/', (size_t)(end - path));
        size_t length = (size_t)((stop ? stop : end) - path);
        if (length == 4 && !strncmp(path, "hang", 4)) wish.hang = 1;
        else if (length == 4 && !strncmp(path, "drip", 4)) wish.drip = 1;
        else if (length == 4 && !strncmp(path, "json", 4)) wish.json = 1;
        else if (!has_option(path, length, "chunks", &wish.chunks) && !has_option(path, length, "wait", &wish.wait) &&
                 !has_option(path, length, "pace", &wish.pace)) has_option(path, length, "cache", &wish.cache);
        path += length + 1;
    }
    if (wish.chunks < 30) wish.chunks = 30; /* fewer leave a section empty */
    if (wish.cache > MOST_BLOCKS) wish.cache = MOST_BLOCKS;
    return wish;
}

/* Whether the body says `"name": true`, with or without the blank. */
static int says(const char *body, size_t length, const char *name) {
    size_t size = strlen(name);
    for (const char *at = body; (at = memmem(at, length - (size_t)(at - body), name, size));) {
        at += size;
        if (*at == ' ') at++;
        if (!strncmp(at, "true", 4)) return 1;
    }
    return 0;
}

/* Into ten blanks, from the right. */
static void write_number(char *blanks, size_t number) {
    for (int i = 9; i >= 0 && (number || i == 9); i--, number /= 10) blanks[i] = (char)('0' + number % 10);
}

static void count_prefix(Client *client, const char *body, size_t length) {
    const char *prompt = memmem(body, length, "\"messages\":", 11);
    if (!prompt) return;
    const char *end = memrchr(prompt, ']', length - (size_t)(prompt - body));
    size_t size = (size_t)((end ? end : body + length) - prompt), found = cached(prompt, size, client->wish.cache);
    counts.prompt_chars += size;
    counts.cached_chars += found;
    if (!client->answer->prompt_at) return;
    own_bytes(client, client->bytes, client->length);
    write_number(client->own + client->answer->prompt_at, size / 4);
    write_number(client->own + client->answer->cached_at, found / 4);
}

static void answer_request(Client *client, const char *path, const char *path_end, const char *body, size_t length) {
    client->sent = client->released = client->length = 0;
    client->piece = 0;
    if (!strncmp(path, "/counters", 9) || !strncmp(path, "/zero", 5)) { send_counters(client, path[1] == 'z'); return; }
    if (!client->counted) { client->counted = 1; counts.opened++; counts.open++; }
    client->answering = 1;
    if (++counts.busy > counts.most_busy) counts.most_busy = counts.busy;
    counts.requests++;
    client->wish = read_wish(path, path_end);
    int kind = says(body, length, "\"stream\":") ? (says(body, length, "\"include_usage\":") ? STREAMED_WITH_USAGE : STREAMED)
             : says(body, length, "\"logprobs\":") ? SCORED : WHOLE;
    client->answer = answer_for(kind, client->wish.chunks, client->wish.json);
    client->bytes = client->answer->bytes;
    client->length = client->answer->length;
    if (client->wish.cache) count_prefix(client, body, length);
    if (client->wish.hang) return;
    if (client->wish.wait) wake_in(client, client->wish.wait);
    else release(client);
}

static size_t body_length(const char *head, size_t length) {
    for (const char *line = head; (line = memmem(line, length - (size_t)(line - head), "\r\n", 2));) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) return strtoul(line + 15, NULL, 10);
    }
    return 0;
}

/* Answer the next request, if all of it is here and no other is being answered. */
static void next_request(Client *client) {
    if (client->answering || !client->have) return;
    const char *blank = memmem(client->in, client->have, "\r\n\r\n", 4);
    if (!blank) return;
    size_t head = (size_t)(blank - client->in) + 4, length = head + body_length(client->in, head);
    if (client->have < length) return;
    char *request = client->in;
    size_t rest = client->have - length;
    client->room = rest + 4096;
    client->in = must(malloc(client->room));
    memcpy(client->in, request + length, rest);
    client->have = rest;
    char *path = memchr(request, ' ', head), *end = path ? memchr(path + 1, ' ', head - (size_t)(path + 1 - request)) : NULL;
    request[length] = 0;
    if (end) answer_request(client, path + 1, end, request + head, length - head);
    else hang_up(client);
    free(request);
}

static void receive(Client *client) {
    for (;;) {
        if (client->room - client->have < 4096) {
            client->room = client->room * 2 + 8192;
            client->in = must(realloc(client->in, client->room));
        }
        size_t left = client->room - client->have - 1;
        ssize_t got = recv(client->fd, client->in + client->have, left, 0);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (got <= 0 || client->have > MOST_REQUEST) { hang_up(client); return; }
        client->have += (size_t)got;
        if ((size_t)got < left) break;
    }
    next_request(client);
}

static void welcome(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        if (fd >= MOST_FDS) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        Client *client = must(calloc(1, sizeof *client));
        client->fd = fd;
        clients[fd] = client;
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd});
    }
}

static int listen_anywhere(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    if (bind(listener, (struct sockaddr *)&here, size) || listen(listener, 4096)) { perror("listen"); exit(1); }
    getsockname(listener, (struct sockaddr *)&here, &size);
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);
    return listener;
}

int main(void) {
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){MOST_FDS, MOST_FDS});
    int listener = listen_anywhere();
    poller = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &(struct epoll_event){.events = EPOLLIN | EPOLLHUP, .data.fd = 0});
    clock_ms = now_ns() / 1000000u;
    for (struct epoll_event events[256];;) {
        int count = epoll_wait(poller, events, 256, waiting ? 1 : -1);
        turn_clock();
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            uint32_t what = events[i].events;
            if (fd == 0) return 0; /* whoever started it is gone */
            if (fd == listener) { welcome(listener); continue; }
            if (clients[fd] && what & EPOLLOUT) send_released(clients[fd]);
            if (clients[fd] && what & ~(uint32_t)EPOLLOUT) receive(clients[fd]);
        }
    }
}
