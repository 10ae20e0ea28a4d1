#define _GNU_SOURCE
#include <sys/file.h>
#include <malloc.h>
#include "culvert_linux.h"

#include <linux/sockios.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C
#endif

int culvert_errno(void) { return errno; }

long long culvert_monotonic_milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int culvert_open_read(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int culvert_enter_network_namespace(int fd) { return setns(fd, CLONE_NEWNET) < 0 ? -errno : 0; }

int culvert_same_file(int a, int b) {
    struct stat x, y;
    if (fstat(a, &x) < 0 || fstat(b, &y) < 0) return -errno;
    return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int culvert_route_socket(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    return fd < 0 ? -errno : fd;
}

static int unix_address(const char *path, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address->sun_path) return -ENAMETOOLONG;
    strcpy(address->sun_path, path);
    return 0;
}

int culvert_seqpacket_connect(const char *path) {
    struct sockaddr_un address;
    int error = unix_address(path, &address);
    if (error < 0) return error;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

int culvert_stream_connect(const char *path, int seconds) {
    struct sockaddr_un address;
    int error = unix_address(path, &address);
    if (error < 0) return error;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    struct timeval limit = {.tv_sec = seconds};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

int culvert_seqpacket_listen(const char *path, int backlog, unsigned mode) {
    struct sockaddr_un address;
    struct stat old;
    int error = unix_address(path, &address);
    if (error < 0) return error;
    if (lstat(path, &old) == 0) {
        if (!S_ISSOCK(old.st_mode)) return -EEXIST;
        if (unlink(path) < 0) return -errno;
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    mode_t umask_before = umask(0777 & ~mode);
    int bound = bind(fd, (struct sockaddr *)&address, sizeof address);
    error = -errno;
    umask(umask_before);
    if (bound < 0 || (listen(fd, backlog) < 0 && (error = -errno))) {
        close(fd);
        return error;
    }
    return fd;
}

int culvert_accept(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int culvert_send_message(int socket, const void *bytes, size_t length, int fd) {
    struct iovec part = {(void *)bytes, length};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    return sent < 0 ? -errno : 0;
}

ssize_t culvert_receive_message(int socket, void *buffer, size_t capacity, int *fd) {
    struct iovec part = {buffer, capacity};
    union {
        struct cmsghdr header;
        char bytes[CMSG_LEN(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.bytes};
    *fd = -1;
    ssize_t length;
    do length = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (length < 0 && errno == EINTR);
    if (length < 0) return -errno;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int foreign = 0;
    if (header) {
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
            header->cmsg_len == CMSG_LEN(sizeof(int)))
            memcpy(fd, CMSG_DATA(header), sizeof *fd);
        else
            foreign = 1;
    }
    if (foreign || (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC))) {
        if (*fd >= 0) close(*fd);
        *fd = -1;
        return message.msg_flags & MSG_TRUNC ? -EMSGSIZE : -E2BIG;
    }
    return length;
}

long long culvert_peer_uid(int socket) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0) return -errno;
    return peer.uid;
}

int culvert_check_pod_socket(int fd) {
    int value;
    socklen_t length = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &length) < 0) return errno == ENOTSOCK ? -ENOTSOCK : -errno;
    if (value != AF_NETLINK) return -EPROTONOSUPPORT;
    length = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &value, &length) < 0) return -errno;
    if (value != NETLINK_ROUTE) return -EPROTONOSUPPORT;
    int theirs = ioctl(fd, SIOCGSKNS);
    if (theirs < 0) return -errno;
    int ours = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (ours < 0) {
        int error = -errno;
        close(theirs);
        return error;
    }
    int same = culvert_same_file(theirs, ours);
    close(theirs);
    close(ours);
    return same < 0 ? same : same ? -EXDEV : 0;
}

static int timeout_option(int socket, int option, long milliseconds) {
    struct timeval value = {milliseconds / 1000, (milliseconds % 1000) * 1000};
    return setsockopt(socket, SOL_SOCKET, option, &value, sizeof value) < 0 ? -errno : 0;
}
int culvert_receive_timeout(int socket, long milliseconds) { return timeout_option(socket, SO_RCVTIMEO, milliseconds); }
int culvert_send_timeout(int socket, long milliseconds) { return timeout_option(socket, SO_SNDTIMEO, milliseconds); }

static int capabilities(int set, struct __user_cap_data_struct data[2]) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    return syscall(set ? SYS_capset : SYS_capget, &header, data) < 0 ? -errno : 0;
}
int culvert_has_net_admin(void) {
    struct __user_cap_data_struct data[2];
    return capabilities(0, data) == 0 && (data[0].effective >> CAP_NET_ADMIN & 1);
}
int culvert_raise_net_admin(void) {
    struct __user_cap_data_struct data[2];
    int error = capabilities(0, data);
    if (error < 0) return error;
    data[0].effective |= data[0].permitted & (1u << CAP_NET_ADMIN);
    return capabilities(1, data);
}

int culvert_start_thread(void *(*body)(void *), void *argument, unsigned stack_kib) {
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, (size_t)stack_kib * 1024);
    int error = pthread_create(&thread, &attributes, body, argument);
    pthread_attr_destroy(&attributes);
    return -error;
}

int culvert_lock_file(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0660);
    if (fd < 0) return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

uint32_t culvert_rtnh_onlink(void) { return RTNH_F_ONLINK; }

// glibc hands argc and argv to constructors, in static executables too.
static int argument_count;
static char **arguments;
__attribute__((constructor)) static void keep_arguments(int argc, char **argv) {
    argument_count = argc;
    arguments = argv;
}
const char *culvert_argument(int index) { return index < argument_count ? arguments[index] : NULL; }

#include <sys/inotify.h>
int culvert_watch_directory(const char *path) {
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd < 0) return -errno;
    if (inotify_add_watch(fd, path, IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB |
                                        IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

long culvert_heap_bytes(void) {
    struct mallinfo2 info = mallinfo2();
    return (long)(info.uordblks + info.hblkhd);
}
