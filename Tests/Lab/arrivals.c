// arrivals PORT: prints a line for each datagram at a UDP port: when the kernel had it (microseconds of CLOCK_REALTIME), its
// source address and port, and the number in it. Ends with SIGTERM.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1, room = 4 << 20;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    if (bind(fd, (struct sockaddr *)&here, sizeof here) < 0) {
        perror("bind");
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        uint64_t number = 0;
        struct sockaddr_in from;
        char control[CMSG_SPACE(sizeof(struct timespec))];
        struct iovec part = {&number, sizeof number};
        struct msghdr message = {
            .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
            .msg_controllen = sizeof control};
        if (recvmsg(fd, &message, 0) < 0) continue;
        struct timespec at = {0};
        struct cmsghdr *stamp = CMSG_FIRSTHDR(&message);
        if (stamp && stamp->cmsg_type == SCM_TIMESTAMPNS) memcpy(&at, CMSG_DATA(stamp), sizeof at);
        char text[INET_ADDRSTRLEN];
        inet_ntop(AF_INET, &from.sin_addr, text, sizeof text);
        printf("%lld %s %d %llu\n", at.tv_sec * 1000000LL + at.tv_nsec / 1000, text, ntohs(from.sin_port),
               (unsigned long long)number);
    }
}
