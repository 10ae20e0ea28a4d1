# A machine in which a real systemd is the first process: its own process, mount, cgroup, host-name and IPC namespaces, and the
# network namespace that it is given. Sourced by check.sh, which runs in a mount namespace of its own: what is mounted here ends
# with it.
#
# Its file system is a writable layer over another one: that of this computer, which costs nothing, or ROOTFS, a directory
# that debootstrap made. What is the machine's own (units, configuration, state) is taken out first.

# machine_make DIRECTORY: the file system, in DIRECTORY/root. What is written into it lies in DIRECTORY/disk/upper.
machine_make() {
    machine=$1
    mkdir -p "$machine"/{disk,root,cgroup}
    mount -t tmpfs -o mode=755 tmpfs "$machine/disk"
    mkdir "$machine"/disk/{upper,work,containerd}
    mount -t overlay -o "lowerdir=${ROOTFS:-/},upperdir=$machine/disk/upper,workdir=$machine/disk/work" overlay "$machine/root"
    (
        cd "$machine/root"
        rm -rf etc/systemd/system etc/rc?.d etc/cni/net.d etc/culvert etc/containerd/certs.d opt/cni var/lib/{cni,culvert,containerd}
        mkdir -p etc/systemd/{system,system.conf.d,system-generators} etc/cni/net.d proc sys dev run tmp var/lib/containerd
        : > etc/fstab
        echo n1 > etc/hostname
        echo 0123456789abcdef0123456789abcdef > etc/machine-id
        # dpkg would make the index of all manual pages anew each time.
        rm -f var/lib/man-db/auto-update
        # Nothing of this computer's is started: not by links in /etc, not by scripts in /etc/init.d.
        ln -s /dev/null etc/systemd/system-generators/systemd-sysv-generator
        ln -s /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
        printf '[Manager]\nDefaultTimeoutStopSec=20s\n' > etc/systemd/system.conf.d/test.conf
    )
    # The hierarchy with a namespace of its own, in which systemd makes its groups.
    mount -t cgroup2 cgroup2 "$machine/cgroup"
    machine_cgroup=$machine/cgroup/culvert-machine-$$
}

# machine_start NETNS: starts it, and waits until all its units are.
machine_start() {
    mkdir -p "$machine_cgroup"
    # Both ends are killed when this shell ends, in whatever way.
    (
        echo "$BASHPID" > "$machine_cgroup/cgroup.procs"
        exec nsenter "--net=$1" setpriv --pdeathsig KILL unshare --cgroup --mount --pid --uts --ipc --propagation private --fork \
            --kill-child bash -euc "$machine_init" machine "$machine/root" "$machine/disk"
    ) > "$machine/console" 2>&1 < /dev/null &
    machine_shell=$!
    local state=
    for _ in $(seq 300); do
        machine_pid=$(cat "/proc/$machine_shell/task/$machine_shell/children" 2> /dev/null | tr -d ' ') || true
        if [ -n "$machine_pid" ] && [ "$(cat "/proc/$machine_pid/comm" 2> /dev/null)" = systemd ]; then
            state=$(on_machine systemctl is-system-running --wait 2>&1) || true
            case $state in running | degraded | maintenance) break ;; esac
        fi
        kill -0 "$machine_shell" 2> /dev/null || break
        sleep 0.1
    done
    # Degraded: something of this computer's own does not start here. Culvert's units are looked at by themselves.
    case $state in running | degraded) return 0 ;; esac
    echo "FAIL  the machine is not running, but ${state:-ended}"
    cat "$machine/console"
    on_machine systemctl --no-pager --failed || true
    on_machine journalctl --no-pager -b -p warning || true
    return 1
}

machine_init='
root=$1
mount -t proc proc "$root/proc"
# Settings of the whole kernel are not this machine'"'"'s, but those of its network are.
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount --rbind "$root/proc/sys" "$root/proc/sys"
mount -o remount,ro,bind "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind "$2/containerd" "$root/var/lib/containerd"
[ ! -d /opt/swift ] || [ -d "$root/opt/swift/usr" ] || { mkdir -p "$root/opt/swift"; mount --bind /opt/swift "$root/opt/swift"; }
cd "$root"
mkdir run/old
pivot_root . run/old
umount -l run/old
rmdir run/old
hostname n1
exec env -i container=test PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd
'

# on_machine COMMAND...: on the machine, as root.
on_machine() {
    nsenter -t "$machine_pid" -m -u -i -n -p -C env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        TERM=dumb DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER= "$@"
}

# machine_stop SIGNAL: 37 (SIGRTMIN+3) halts it as a shutdown does, KILL as a power cut does. What was in /run is gone.
machine_stop() {
    kill "-$1" "${machine_pid:-$machine_shell}"
    for _ in $(seq 600); do
        kill -0 "$machine_shell" 2> /dev/null || break
        sleep 0.05
    done
    kill -0 "$machine_shell" 2> /dev/null && echo "FAIL  the machine did not stop within 30 s" && return 1
    wait "$machine_shell" 2> /dev/null || true
    machine_shell= machine_pid=
    # Its processes are gone with it; their groups are not.
    find "$machine_cgroup" -depth -type d -exec rmdir {} + 2> /dev/null || true
}

# machine_files: every file and directory that differs from what machine_make began with: mode, owner, and hash or target.
machine_files() {
    python3 - "$machine/disk/upper" "${ROOTFS:-/}" <<'Y'
import hashlib, os, stat, sys

def facts(path):
    try:
        found = os.lstat(path)
    except OSError:
        return None
    content = ""
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    # (A character device 0:0 in the upper layer is a file that was removed.)
    return f"{stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid} {content}"

upper, lower = sys.argv[1:]
for directory, directories, files in os.walk(upper):
    directories.sort()
    for name in sorted(directories + files):
        path = os.path.relpath(os.path.join(directory, name), upper)
        here = facts(os.path.join(upper, path))
        if here != facts(os.path.join(lower, path)):
            print(path, here)
Y
}
