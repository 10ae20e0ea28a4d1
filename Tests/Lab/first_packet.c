// A container whose first act is one UDP datagram to the outside host. Exits 1 where it cannot be sent.
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9000)};
    inet_pton(AF_INET, "203.0.113.10", &to.sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (sendto(fd, "first", 5, 0, (struct sockaddr *)&to, sizeof to) == 5) return 0;
    perror("sendto");
    return 1;
}
