#define _GNU_SOURCE
#include <linux/filter.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <link.h>
#include <malloc.h>
#include "culvert_linux.h"

#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
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

size_t culvert_start_random(void) {
    size_t number = 0;
    // The first eight of the sixteen guard the stack.
    const char *bytes = (const char *)getauxval(AT_RANDOM);
    if (bytes) memcpy(&number, bytes + 8, sizeof number);
    return number | 1;
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

int culvert_send_message(int socket, const void *bytes, size_t length, int fd, int at_once) {
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
    ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL | (at_once ? MSG_DONTWAIT : 0));
    return sent < 0 ? -errno : 0;
}

static int let_go_of_segments(struct dl_phdr_info *object, size_t size, void *unused) {
    (void)size, (void)unused;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD || segment->p_flags & PF_W) continue;
        uintptr_t from = (object->dlpi_addr + segment->p_vaddr) & ~(page - 1);
        uintptr_t to = (object->dlpi_addr + segment->p_vaddr + segment->p_memsz) & ~(page - 1);
        if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
    }
    return 1;  // The program itself comes first; libraries are others' too.
}

void culvert_let_go_of_code(void) { dl_iterate_phdr(let_go_of_segments, NULL); }

ssize_t culvert_message_length(int socket) {
    ssize_t length = recv(socket, NULL, 0, MSG_PEEK | MSG_TRUNC);
    return length < 0 ? -errno : length;
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
int culvert_contains(const void *text, size_t length, const void *sought, size_t sought_length) {
    return memmem(text, length, sought, sought_length) != NULL;
}

int culvert_is_called(const char *name) { return strcmp(program_invocation_short_name, name) == 0; }

/* capset changes the calling thread alone, and threads inherit from the one that starts them. So with a file capability
   of `+p` it has to be raised before there is a second thread: before main, since an async main already has several.
   Under the name of culvertctl the helper's program needs no capability, and gives up the one that it has by its file. */
__attribute__((constructor)) static void capability_before_main(void) {
    struct __user_cap_data_struct none[2] = {{0}};
    if (culvert_is_called("culvertctl") && getauxval(AT_SECURE)) {
        (void)capabilities(1, none);
    } else {
        (void)culvert_raise_net_admin();
    }
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

// Locks what open has opened, or closes it again.
static int locked(int fd) {
    if (fd < 0) return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

int culvert_lock_file(const char *path) {
    return locked(open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0660));
}

int culvert_lock_directory(const char *path) { return locked(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)); }

ssize_t culvert_find(const void *bytes, size_t length, const void *part, size_t part_length) {
    const char *found = length == 0 ? NULL : memmem(bytes, length, part, part_length);
    return found ? found - (const char *)bytes : -1;
}

int culvert_exchange_files(const char *a, const char *b) {
    return renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) < 0 ? -errno : 0;
}

int culvert_write_record(const char *directory, const char *name, const void *bytes, size_t length, mode_t mode) {
    int where = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (where < 0) return -errno;
    char temporary[64];
    int file = -1, error = -EEXIST;
    // Somebody may have put something in the way of a name that is easily guessed, and do it once more.
    for (int try = 0; try < 16 && file < 0; try++) {
        snprintf(temporary, sizeof temporary, ".%ld.%d", (long)getpid(), try);
        (void)unlinkat(where, temporary, 0);
        file = openat(where, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (file < 0) {
            error = -errno;
            if (errno != EEXIST) break;
        }
    }
    if (file < 0) {
        close(where);
        return error == -ENOENT ? -EIO : error;
    }
    ssize_t written = write(file, bytes, length);
    error = written < 0 ? -errno : (size_t)written != length ? -ENOSPC : 0;
    if (!error && fchmod(file, mode) < 0) error = -errno;
    if (close(file) < 0 && !error) error = -errno;
    if (!error && renameat(where, temporary, where, name) < 0) error = -errno;
    if (error) (void)unlinkat(where, temporary, 0);
    close(where);
    return error;
}

uint32_t culvert_rtnh_onlink(void) { return RTNH_F_ONLINK; }

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

void culvert_raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

long culvert_heap_bytes(void) {
    struct mallinfo2 info = mallinfo2();
    return (long)(info.uordblks + info.hblkhd);
}

int64_t culvert_monotonic_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t culvert_realtime_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int bound_udp_socket(uint32_t address, uint16_t port, int transparent) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    int on = 1, ttl = 255;
    struct sockaddr_in here = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
    if ((transparent && setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, sizeof on) < 0) ||
        setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) < 0 ||
        bind(fd, (struct sockaddr *)&here, sizeof here) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int culvert_echo_sender(uint32_t source, uint16_t port) {
    int fd = bound_udp_socket(source, port, 1);
    // Echoes to gateways of which the link-layer address is being asked for wait in the kernel, at this socket's expense. With the
    // default (212,992 bytes) those to a few dead gateways leave no room for the others.
    int size = 8 << 20;
    if (fd >= 0) (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    return fd;
}

int culvert_echo_receiver(uint32_t address, uint16_t port, uint32_t size_wanted, uint32_t magic, uint32_t word) {
    int fd = bound_udp_socket(address, port, 1);
    if (fd < 0) return fd;
    // Room for what comes back between two wake-ups, from as many gateways as there can be (4,095, up to 2 kB each).
    int on = 1, size = 16 << 20;
    // The filter of a UDP socket sees the UDP header first.
    enum { UDP_HEADER = 8 };
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, UDP_HEADER + size_wanted, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, UDP_HEADER),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, magic, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, UDP_HEADER + 16),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, word, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog filter = {.len = sizeof steps / sizeof *steps, .filter = steps};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) < 0 ||
        setsockopt(fd, IPPROTO_IP, IP_RECVTTL, &on, sizeof on) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    return fd;
}

uint32_t culvert_dropped(int fd) {
    uint32_t values[SK_MEMINFO_VARS] = {0};
    socklen_t size = sizeof values;
    return getsockopt(fd, SOL_SOCKET, SO_MEMINFO, values, &size) < 0 ? 0 : values[SK_MEMINFO_DROPS];
}

enum { ECHO_BATCH = 64 };

int culvert_echo_send(int fd, uint32_t address, uint16_t port, const struct culvert_echo *echoes, int count) {
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
    int sent = 0, failure = 0;
    for (int start = 0; start < count; ) {
        int size = count - start < ECHO_BATCH ? count - start : ECHO_BATCH;
        struct mmsghdr messages[ECHO_BATCH];
        struct iovec parts[ECHO_BATCH];
        union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(uint32_t))]; } control[ECHO_BATCH];
        memset(messages, 0, sizeof messages);
        memset(control, 0, sizeof control);
        for (int i = 0; i < size; i++) {
            const struct culvert_echo *echo = &echoes[start + i];
            parts[i] = (struct iovec){(void *)echo->bytes, echo->length};
            struct msghdr *message = &messages[i].msg_hdr;
            message->msg_name = &to;
            message->msg_namelen = sizeof to;
            message->msg_iov = &parts[i];
            message->msg_iovlen = 1;
            message->msg_control = control[i].bytes;
            message->msg_controllen = sizeof control[i].bytes;
            struct cmsghdr *mark = CMSG_FIRSTHDR(message);
            mark->cmsg_level = SOL_SOCKET;
            mark->cmsg_type = SO_MARK;
            mark->cmsg_len = CMSG_LEN(sizeof(uint32_t));
            memcpy(CMSG_DATA(mark), &echo->mark, sizeof(uint32_t));
        }
        int done = sendmmsg(fd, messages, size, MSG_DONTWAIT);
        // The first one is refused: the others may not be.
        if (done < 0) {
            failure = errno;
            done = 1;
        } else sent += done;
        start += done;
    }
    return sent == 0 && failure ? -failure : sent;
}

int culvert_echo_receive(int fd, struct culvert_echo *echoes, int capacity) {
    struct mmsghdr messages[ECHO_BATCH];
    struct iovec parts[ECHO_BATCH];
    struct sockaddr_in sources[ECHO_BATCH];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(struct timespec)) + CMSG_SPACE(sizeof(int))];
    } control[ECHO_BATCH];
    int size = capacity < ECHO_BATCH ? capacity : ECHO_BATCH;
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < size; i++) {
        parts[i] = (struct iovec){echoes[i].bytes, sizeof echoes[i].bytes};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &sources[i], .msg_namelen = sizeof sources[i], .msg_iov = &parts[i], .msg_iovlen = 1,
            .msg_control = control[i].bytes, .msg_controllen = sizeof control[i].bytes};
    }
    int count = recvmmsg(fd, messages, size, MSG_DONTWAIT, NULL);
    if (count < 0) return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    for (int i = 0; i < count; i++) {
        struct culvert_echo *echo = &echoes[i];
        struct msghdr *message = &messages[i].msg_hdr;
        // A longer datagram is cut off, and no echo.
        echo->length = message->msg_flags & MSG_TRUNC ? 0 : messages[i].msg_len;
        echo->source = ntohl(sources[i].sin_addr.s_addr);
        echo->port = ntohs(sources[i].sin_port);
        echo->ttl = 0;
        echo->received = 0;
        for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
            if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_TIMESTAMPNS) {
                struct timespec at;
                memcpy(&at, CMSG_DATA(part), sizeof at);
                echo->received = (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
            } else if (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_TTL) {
                int ttl;
                memcpy(&ttl, CMSG_DATA(part), sizeof ttl);
                echo->ttl = (uint8_t)ttl;
            }
        }
    }
    return count;
}

int culvert_wakeup_make(void) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

void culvert_wakeup_signal(int wakeup) {
    uint64_t one = 1;
    (void)!write(wakeup, &one, sizeof one);
}

static int wait_for(int fd, short events, int64_t until) {
    for (;;) {
        int64_t left = until - culvert_monotonic_nanoseconds();
        if (left < 0) left = 0;
        struct timespec limit = {left / 1000000000, left % 1000000000};
        struct pollfd poll = {.fd = fd, .events = events};
        int result = ppoll(&poll, 1, &limit, NULL);
        if (result < 0 && errno == EINTR) continue;
        return result > 0;
    }
}

int culvert_wakeup_wait(int wakeup, int64_t until) {
    if (!wait_for(wakeup, POLLIN, until)) return 0;
    uint64_t count;
    (void)!read(wakeup, &count, sizeof count);
    return 1;
}

int culvert_tcp_begin(uint32_t source, uint32_t address, uint16_t port, const char *device) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(source)};
    struct sockaddr_in there = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
    int error = 0;
    if (device[0] && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device) + 1) < 0) error = errno;
    else if (source && bind(fd, (struct sockaddr *)&here, sizeof here) < 0) error = errno;
    else if (connect(fd, (struct sockaddr *)&there, sizeof there) < 0 && errno != EINPROGRESS) error = errno;
    // A refusal is an answer of the other side, and comes at once where that is near.
    if (error && error != ECONNREFUSED) {
        close(fd);
        return -error;
    }
    return fd;
}

int culvert_tcp_finish(int fd, int64_t until) {
    int answered = 0;
    if (wait_for(fd, POLLOUT, until)) {
        int error = 0;
        socklen_t size = sizeof error;
        answered = getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && (!error || error == ECONNREFUSED);
    }
    close(fd);
    return answered;
}

int culvert_netlink_ignore(int fd, const uint32_t *ports, int count) {
    struct sock_filter code[2 * 8 + 2];
    int length = 0;
    if (count > 8) return -EINVAL;
    // nlmsg_pid, which BPF loads in network order.
    code[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct nlmsghdr, nlmsg_pid));
    for (int i = 0; i < count; i++) {
        code[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(ports[i]), 0, 1);
        code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
    }
    code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0xFFFFFFFF);
    struct sock_fprog program = {.len = length, .filter = code};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0 ? -errno : 0;
}

int culvert_receive_room(int fd, int bytes) {
    return setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0 ? -errno : 0;
}
