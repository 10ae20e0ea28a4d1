// traffic RATE SECONDS ADDRESS PORT NETNS...: from each network namespace RATE datagrams a second to ADDRESS:PORT, until
// SECONDS have passed or SIGTERM comes. Each datagram has a number; nothing is expected back. Prints how many were sent. With
// TRAFFIC_FRESH set, each datagram of the only NETNS is a flow of its own.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stopped;
static void stop(int signal) {
    (void)signal;
    stopped = 1;
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    double rate = atof(argv[1]), seconds = atof(argv[2]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[4]))};
    if (inet_pton(AF_INET, argv[3], &to.sin_addr) != 1 || rate <= 0) return 2;
    int count = argc - 5;
    int *sockets = calloc(count, sizeof(int));
    for (int i = 0; i < count; i++) {
        int namespace = open(argv[5 + i], O_RDONLY | O_CLOEXEC);
        if (namespace < 0 || setns(namespace, CLONE_NEWNET) < 0) {
            perror(argv[5 + i]);
            return 1;
        }
        close(namespace);
        // Not connected: an error that came back must not keep the next datagram from being sent.
        sockets[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    }
    // The test's harness may have it blocked.
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGTERM, stop);
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    unsigned long sent = 0;
    for (unsigned long round = 0; !stopped && round < rate * seconds; round++) {
        if (getenv("TRAFFIC_FRESH")) {
            close(sockets[0]);
            sockets[0] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        }
        for (int i = 0; i < count; i++)
            if (sendto(sockets[i], &round, sizeof round, 0, (struct sockaddr *)&to, sizeof to) > 0) sent++;
        next.tv_nsec += (long)(1e9 / rate);
        while (next.tv_nsec >= 1000000000) {
            next.tv_nsec -= 1000000000;
            next.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
    printf("%lu sent\n", sent);
    return 0;
}
