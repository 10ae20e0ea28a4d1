// What Swift cannot import from the kernel's and libc's headers: macros with casts, varargs, and the
// CMSG_* family. Everything else is called directly through this module.
#pragma once
#include <netinet/in.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fib_rules.h>
#include <netdb.h>
#include <linux/fou.h>
#include <linux/wireguard.h>
#include <linux/genetlink.h>
#include <linux/if_link.h>
#include <linux/if_tunnel.h>
#include <linux/neighbour.h>
#include <linux/netconf.h>
#include <linux/netlink.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/// `errno`, which is a macro.
int culvert_errno(void);

/// Monotonic clock in milliseconds.
long long culvert_monotonic_milliseconds(void);

/// A number that differs from one start of a program to the next, never 0: of the bytes that the kernel hands each program
/// (`AT_RANDOM` in getauxval(3)), without a system call.
size_t culvert_start_random(void);

/// `open(2)` with `O_CLOEXEC`, read-only. Negative errno on failure.
int culvert_open_read(const char *path);

/// Enters the network namespace behind `fd` (this thread only). 0 or negative errno.
int culvert_enter_network_namespace(int fd);

/// True when both descriptors are the same nsfs inode. Negative errno on failure.
int culvert_same_file(int a, int b);

/// A `NETLINK_ROUTE` socket of the namespace this thread is in, close-on-exec. Negative errno on failure.
int culvert_route_socket(void);

/// Connects a non-blocking `SOCK_SEQPACKET` Unix socket. Negative errno on failure; `-EAGAIN` means the
/// listener's backlog is full.
int culvert_seqpacket_connect(const char *path);

/// Connects a `SOCK_STREAM` Unix socket whose calls end after `seconds`. Negative errno on failure.
int culvert_stream_connect(const char *path, int seconds);

/// Listens on a `SOCK_SEQPACKET` Unix socket at `path`, mode `mode`. Only a socket is ever replaced there.
/// Negative errno on failure (`-EEXIST`: something that is not a socket is in the way).
int culvert_seqpacket_listen(const char *path, int backlog, unsigned mode);

/// Accepts with `SOCK_CLOEXEC`. Negative errno on failure.
int culvert_accept(int listener);

/// Sends one message, with `fd` as its `SCM_RIGHTS` unless it is negative. 0 or negative errno: `-EAGAIN` where `at_once` is not 0
/// and the socket has no room.
int culvert_send_message(int socket, const void *bytes, size_t length, int fd, int at_once);

/// Gives back the pages of this program's own code and constants, which come again from the file as they are used: what only the
/// start needs is resident no longer.
void culvert_let_go_of_code(void);

/// The length of the message that `recv` would return next, without taking it. Negative errno.
ssize_t culvert_message_length(int socket);

/// Receives one message and at most one descriptor. The control buffer has room for exactly one
/// (`CMSG_LEN(4)`), so the kernel itself closes any further ones and sets `MSG_CTRUNC`.
/// Returns its length or negative errno: `-EMSGSIZE` for a truncated message, `-E2BIG` for more than one
/// descriptor or any other ancillary data. `*fd` is -1 when none came.
ssize_t culvert_receive_message(int socket, void *buffer, size_t capacity, int *fd);

/// Peer's effective uid at connect (`SO_PEERCRED`). Negative errno on failure.
long long culvert_peer_uid(int socket);

/// 0 when `fd` is an `AF_NETLINK`/`NETLINK_ROUTE` socket of another network namespace than this process's own
/// (`SIOCGSKNS`); otherwise `-ENOTSOCK`, `-EPROTONOSUPPORT`, `-EXDEV` (our own namespace) or negative errno.
int culvert_check_pod_socket(int fd);

/// Puts a receive time-out of `milliseconds` on a socket. 0 or negative errno.
int culvert_receive_timeout(int socket, long milliseconds);
/// Puts a send time-out of `milliseconds` on a socket. 0 or negative errno.
int culvert_send_timeout(int socket, long milliseconds);

/// Raises `CAP_NET_ADMIN` from permitted to effective, if it is there (file capability `+p`). 0 or negative errno.
int culvert_raise_net_admin(void);
/// Lets this process have as many files open as its hard limit allows: a gateway with many targets asks all of them at once.
void culvert_raise_file_limit(void);
/// 1 when `CAP_NET_ADMIN` is effective, 0 when not.
int culvert_has_net_admin(void);
/// 1 when the bytes are somewhere in the text, 0 when not.
int culvert_contains(const void *text, size_t length, const void *sought, size_t sought_length);
/// 1 when the program was started under this name, in whatever directory, 0 when not.
int culvert_is_called(const char *name);

/// Starts a detached thread with a stack of that many KiB. 0 or negative errno.
int culvert_start_thread(void *(*body)(void *), void *argument, unsigned stack_kib);

/// Takes an exclusive lock on `path` (flock(2)), which is made where it is missing, for as long as the descriptor is open.
/// The descriptor, or negative errno; `-EWOULDBLOCK`: somebody else has the lock.
int culvert_lock_file(const char *path);
/// The same for a directory, in which nothing is made.
int culvert_lock_directory(const char *path);
/// Exchanges two files of one file system in one step (renameat2(2), RENAME_EXCHANGE). 0 or negative errno; `-EINVAL`: the
/// file system cannot.
int culvert_exchange_files(const char *a, const char *b);

/// `NLA_F_NESTED`, NLM flags and RTNH flags that are not plain integers to Swift.
uint32_t culvert_rtnh_onlink(void);

/// Where `part` begins in `bytes`, from 0; -1: nowhere.
ssize_t culvert_find(const void *bytes, size_t length, const void *part, size_t part_length);

/// Writes a file `name` into a directory that others may write to: beside its place, and then renamed, so that nobody reads
/// half of it. No link is followed, neither as the directory nor in it, and nothing is opened that was there before. The
/// file's mode is `mode`. Negative errno on failure; -ENOENT: there is no such directory.
int culvert_write_record(const char *directory, const char *name, const void *bytes, size_t length, mode_t mode);

/// An inotify descriptor for everything that changes a directory's files. Negative errno on failure.
int culvert_watch_directory(const char *path);
/// Bytes in use on the heap (mallinfo2(3)), for benchmarks.
long culvert_heap_bytes(void);


/// One echo to be sent, or one that has come back.
struct culvert_echo {
    uint8_t bytes[64];
    uint32_t length;
    /// Sent: the mark. Received: unused.
    uint32_t mark;
    /// Received: IPv4 source address and port, host order.
    uint32_t source;
    uint16_t port;
    /// Received: the IP header's time to live; 0 where it is not known.
    uint8_t ttl;
    /// Received: when the kernel had it, nanoseconds of CLOCK_REALTIME; 0 where it is not known.
    int64_t received;
};

/// A UDP socket that sends with a source address that no interface has (IP_TRANSPARENT) and TTL 255, bound to it. Addresses in
/// host order. The descriptor, or negative errno.
int culvert_echo_sender(uint32_t source, uint16_t port);
/// A UDP socket, bound, that tells receive times and TTLs. Of what comes in it takes only datagrams of `size` bytes with the
/// 32-bit words `magic` at 0 and `word` at 16, in network order: the kernel drops all others before they take room in the queue.
/// The descriptor, or negative errno.
int culvert_echo_receiver(uint32_t address, uint16_t port, uint32_t size, uint32_t magic, uint32_t word);
/// How many datagrams the kernel has dropped that were meant for a socket: filtered, or without room for them (SO_MEMINFO).
uint32_t culvert_dropped(int socket);
/// Sends echoes to one address, each with its own mark, in one call of the kernel where that takes them all. How many were
/// sent, or negative errno where not one was.
int culvert_echo_send(int socket, uint32_t address, uint16_t port, const struct culvert_echo *echoes, int count);
/// Takes what has come in, without waiting. How many, 0 where there are none, or negative errno.
int culvert_echo_receive(int socket, struct culvert_echo *echoes, int capacity);
/// Nanoseconds of CLOCK_MONOTONIC and CLOCK_REALTIME.
int64_t culvert_monotonic_nanoseconds(void);
int64_t culvert_realtime_nanoseconds(void);
/// An eventfd, and waiting for it until a time of CLOCK_MONOTONIC. 1: it was signalled (and is reset), 0: the time has come.
int culvert_wakeup_make(void);
void culvert_wakeup_signal(int wakeup);
int culvert_wakeup_wait(int wakeup, int64_t until);
/// Begins a TCP connection from an address; `device` is bound to unless it is empty. The descriptor, or negative errno.
int culvert_tcp_begin(uint32_t source, uint32_t address, uint16_t port, const char *device);
/// Waits for a connection that was begun, at most until a time of CLOCK_MONOTONIC, and closes it. 1: the other side has
/// answered (also with a refusal), 0: it has not.
int culvert_tcp_finish(int socket, int64_t until);
/// Drops what one of these ports has caused before it gets into a netlink socket's queue (SO_ATTACH_FILTER). At most 8. 0 or
/// negative errno.
int culvert_netlink_ignore(int socket, const uint32_t *ports, int count);
/// Makes room for so many bytes of what comes in (SO_RCVBUFFORCE). 0 or negative errno.
int culvert_receive_room(int socket, int bytes);
