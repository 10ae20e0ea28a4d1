// Numbers that a program and its C library must agree on: of the structures and constants that the plugin passes to it.
// Tests/Plugin/libc.sh compiles this with the headers of both libraries.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define FIELD(type, field) offsetof(struct type, field)
// Where a field has half the size in one library, the other half is padding behind it, which musl sets to 0: the same number on a
// machine whose numbers begin with the lowest byte.
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "msghdr and cmsghdr agree on little-endian machines only");

const unsigned long layout[] = {
    sizeof(struct msghdr), FIELD(msghdr, msg_name), FIELD(msghdr, msg_namelen), FIELD(msghdr, msg_iov),
    FIELD(msghdr, msg_iovlen), FIELD(msghdr, msg_control), FIELD(msghdr, msg_controllen), FIELD(msghdr, msg_flags),
    sizeof(struct cmsghdr), FIELD(cmsghdr, cmsg_len), FIELD(cmsghdr, cmsg_level), FIELD(cmsghdr, cmsg_type),
    CMSG_LEN(sizeof(int)), CMSG_SPACE(sizeof(int)),
    sizeof(struct iovec), FIELD(iovec, iov_base), FIELD(iovec, iov_len),
    sizeof(struct sockaddr_un), FIELD(sockaddr_un, sun_family), FIELD(sockaddr_un, sun_path), sizeof(socklen_t),
    sizeof(struct stat), FIELD(stat, st_dev), FIELD(stat, st_ino), FIELD(stat, st_mode), FIELD(stat, st_size),
    sizeof(struct pollfd), FIELD(pollfd, fd), FIELD(pollfd, events), FIELD(pollfd, revents),
    sizeof(struct timespec), FIELD(timespec, tv_sec), FIELD(timespec, tv_nsec),
    POLLIN, POLLOUT, POLLHUP, POLLERR,
    AF_UNIX, AF_NETLINK, SOCK_SEQPACKET, SOCK_RAW, SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET, SCM_RIGHTS,
    MSG_PEEK, MSG_TRUNC, MSG_NOSIGNAL, MSG_DONTWAIT, MSG_CTRUNC,
    O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_TRUNC, O_CLOEXEC, O_NOFOLLOW, O_DIRECTORY,
    CLONE_NEWNET, CLOCK_MONOTONIC, AT_RANDOM, AT_SECURE, SYS_capget, SYS_capset, sizeof(mode_t), sizeof(nfds_t),
    PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, FIELD(lconv, decimal_point),
    EAGAIN, EINTR, EEXIST, ENOENT, EACCES, EPERM, ECONNREFUSED, EPIPE, ENOTCONN, EINVAL, ENOMEM, ENOSPC, ENAMETOOLONG,
};
