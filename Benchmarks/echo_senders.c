// echo_senders SENDERS RATE SECONDS: echoes as that many nodes would send them to the gateway n3 of the lab, RATE a second in
// all, inside our VXLAN inside Cilium's. To be run in the lab's namespace `out`, which n3 sends the answers to. Prints how
// many were sent, how many came back, and the processor time of this process in microseconds: packets between network
// namespaces are handled by whoever sends them, so the gateway's kernel is in it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 32, VXLAN = 8, ETH = 14, IP = 20, UDP = 8, BODY = 40 };
enum { INNER = ETH + IP + UDP + BODY, OUTER = ETH + IP + UDP + VXLAN + INNER, SIZE = VXLAN + OUTER };

static void put16(uint8_t *p, unsigned v) { p[0] = v >> 8; p[1] = v; }
static void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16); put16(p + 2, v & 0xffff); }
static void mac(uint8_t *p, unsigned high, uint32_t low) { put16(p, high); put32(p + 2, low); }
static void vxlan(uint8_t *p, uint32_t vni) { put32(p, 0x08000000); put32(p + 4, vni << 8); }
static void ip(uint8_t *p, unsigned size, uint32_t source, uint32_t destination, unsigned from, unsigned to) {
    memset(p, 0, IP + UDP);
    p[0] = 0x45;
    put16(p + 2, size);
    p[8] = 64;
    p[9] = 17;
    put32(p + 12, source);
    put32(p + 16, destination);
    uint32_t sum = 0;
    for (int i = 0; i < IP; i += 2) sum += p[i] << 8 | p[i + 1];
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    put16(p + 10, ~sum & 0xffff);
    put16(p + IP, from);
    put16(p + IP + 2, to);
    put16(p + IP + 4, size - IP);
}
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    int senders = atoi(arguments[1]);
    double rate = atof(arguments[2]), seconds = atof(arguments[3]);
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), room = 8 << 20;
    setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(8472)}, there = here;
    there.sin_addr.s_addr = inet_addr("10.0.0.13");
    if (bind(s, (struct sockaddr *)&here, sizeof here)) return perror("bind"), 1;
    static uint8_t out[BATCH][SIZE], in[BATCH][2048];
    struct iovec outv[BATCH], inv[BATCH];
    struct mmsghdr outs[BATCH], ins[BATCH];
    memset(outs, 0, sizeof outs);
    memset(ins, 0, sizeof ins);
    for (int i = 0; i < BATCH; i++) {
        outv[i] = (struct iovec){out[i], SIZE};
        inv[i] = (struct iovec){in[i], sizeof in[i]};
        outs[i].msg_hdr = (struct msghdr){.msg_name = &there, .msg_namelen = sizeof there, .msg_iov = outv + i, .msg_iovlen = 1};
        ins[i].msg_hdr = (struct msghdr){.msg_iov = inv + i, .msg_iovlen = 1};
    }
    uint64_t sent = 0, back = 0;
    double begin = now(), end = begin + seconds;
    for (double time = begin; time < end + 0.3; time = now()) {
        uint64_t due = (time < end ? time - begin : seconds) * rate;
        while (sent < due) {
            int batch = due - sent < BATCH ? due - sent : BATCH;
            for (int i = 0; i < batch; i++, sent++) {
                // As Benchmarks/scale.sh and echoes.sh number them: x4 and on.
                unsigned n = 4 + sent % senders;
                // Each second every sender takes a fresh port, as the helper does: a new flow for what is below.
                unsigned fresh = (unsigned)(time - begin) * 7919;
                uint32_t net = 10u << 24 | (128 + n / 256 % 64) << 16 | n % 256 << 8, gateway = 0x0af40301;
                uint8_t *p = out[i];
                vxlan(p, 6);
                p += VXLAN;
                mac(p, 0x02ce, 3);
                mac(p + 6, 0x02ce, 1);
                put16(p + 12, 0x0800);
                p += ETH;
                ip(p, OUTER - ETH, net | 1, gateway, 32768 + (n + fresh) % 16384, 8475);
                p += IP + UDP;
                vxlan(p, 1);
                p += VXLAN;
                mac(p, 0x02c7, gateway);
                mac(p + 6, 0x02c7, net | 1);
                put16(p + 12, 0x0800);
                p += ETH;
                ip(p, INNER - ETH, net, net | 1, 49152 + fresh % 16384, 3785);
            }
            sendmmsg(s, outs, batch, 0);
            for (int got; (got = recvmmsg(s, ins, BATCH, 0, NULL)) > 0;) back += got;
        }
        for (int got; (got = recvmmsg(s, ins, BATCH, 0, NULL)) > 0;) back += got;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%lu %lu %ld\n", sent, back, usage.ru_utime.tv_sec * 1000000 + usage.ru_utime.tv_usec + usage.ru_stime.tv_sec * 1000000 + usage.ru_stime.tv_usec);
}
