// A pod's only program: its first act is one datagram to the outside host; then it waits until it is told to end.
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void end(int number) {
    (void)number;
    _exit(0);
}

int main(void) {
    // The first process of a namespace is not ended by a signal that it has no handler for.
    signal(SIGTERM, end);
    signal(SIGINT, end);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9000)};
    inet_pton(AF_INET, "203.0.113.10", &to.sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (sendto(fd, "first", 5, 0, (struct sockaddr *)&to, sizeof to) != 5) perror("sendto");
    while (1) pause();
}
