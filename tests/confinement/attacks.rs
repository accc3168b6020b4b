//! What attacker code tries, as data: one row, one call. Each row is first made
//! by the same account without confinement (the control) and then by each
//! confined process; what is not in that process's list of what it may do must
//! end it.

use nix::libc::{self, c_long};

use super::raw::{self, room, text, words};

/// What the control shows: that the row is a real call that reaches the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// It works for an ordinary account.
    Works,
    /// It comes back with what the kernel has to say, often a refusal for want
    /// of rights: what confinement adds is that the attacker dies of it.
    Reaches,
    /// Not tried: it would harm the test.
    Untried,
}

/// One attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) control: Control,
    pub(crate) act: Box<dyn Fn() -> i64>,
}

/// Descriptors that every attacker holds, as a worker holds the host's files.
pub(crate) mod held {
    /// A file, to read and write.
    pub(crate) const FILE: u64 = 20;
    /// A file, to append.
    pub(crate) const APPEND: u64 = 21;
    /// A directory.
    pub(crate) const DIRECTORY: u64 = 22;
    /// A socket that is not the broker's.
    pub(crate) const SOCKET: u64 = 23;
    /// Its other end, with a message in it.
    pub(crate) const PEER: u64 = 24;
    /// A file, to read.
    pub(crate) const READ: u64 = 25;
    /// An epoll instance that is not the worker's.
    pub(crate) const EPOLL: u64 = 26;
    /// The broker's alone: its log's directory.
    pub(crate) const LOG: u64 = 27;
    /// Its state directory.
    pub(crate) const STATE: u64 = 28;
}

/// Everything of the stage: world-readable, so that the control works.
pub(crate) const STAGE: &str = "/tmp/stage";

use Control::{Reaches, Untried, Works};
use held::{APPEND, DIRECTORY, EPOLL, FILE, PEER, READ, SOCKET};

pub(crate) const CWD: u64 = int(libc::AT_FDCWD);
const RW: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const RX: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;
const ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const PRIVATE: u64 = libc::MAP_PRIVATE as u64;
const SHARED: u64 = libc::MAP_SHARED as u64;
const NONE: u64 = u64::MAX;

/// An `int` as an argument: its bits, for `-1` as for flags.
#[expect(clippy::cast_sign_loss, reason = "arguments are bits")]
const fn int(value: i32) -> u64 {
    value as u64
}

/// A `struct msghdr` with one byte of data and, if asked, a descriptor.
fn message(descriptor: Option<u64>) -> u64 {
    let data = words(&[room(8), 1]);
    let (control, length) = match descriptor {
        // cmsg_len, then level and type in one word, then the descriptor.
        Some(number) => (words(&[20, 1 | (int(libc::SCM_RIGHTS) << 32), number]), 24),
        None => (words(&[0, 0, 0]), 24),
    };
    words(&[0, 0, data, 1, control, length, 0])
}

/// A `struct sockaddr_un`, or any other address that starts so.
fn address(family: i32, path: &str) -> u64 {
    let mut bytes = vec![u8::try_from(family).expect("a small number"), 0];
    bytes.extend_from_slice(path.as_bytes());
    bytes.resize(112, 0);
    let packed: Vec<u64> =
        bytes.chunks(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("8 bytes"))).collect();
    words(&packed)
}

type Row = (&'static str, Control, c_long, Vec<u64>);

fn files() -> Vec<Row> {
    let file = text("/tmp/stage/file");
    let new = text("/tmp/stage/new");
    let link = text("/tmp/stage/link");
    let directory = text(STAGE);
    let name = text("user.test");
    let buffer = room(4096);
    let how = words(&[0, 0, 0]);
    vec![
        #[cfg(target_arch = "x86_64")]
        ("open", Works, libc::SYS_open, vec![file, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("creat", Works, libc::SYS_creat, vec![new, 0o600]),
        #[cfg(target_arch = "x86_64")]
        ("stat", Works, libc::SYS_stat, vec![file, buffer]),
        #[cfg(target_arch = "x86_64")]
        ("lstat", Works, libc::SYS_lstat, vec![file, buffer]),
        #[cfg(target_arch = "x86_64")]
        ("access", Works, libc::SYS_access, vec![file, 0]),
        #[cfg(target_arch = "x86_64")]
        ("readlink", Works, libc::SYS_readlink, vec![link, buffer, 100]),
        #[cfg(target_arch = "x86_64")]
        ("chmod", Works, libc::SYS_chmod, vec![file, 0o666]),
        #[cfg(target_arch = "x86_64")]
        ("chown", Works, libc::SYS_chown, vec![file, NONE, NONE]),
        #[cfg(target_arch = "x86_64")]
        ("lchown", Works, libc::SYS_lchown, vec![file, NONE, NONE]),
        #[cfg(target_arch = "x86_64")]
        ("utime", Works, libc::SYS_utime, vec![file, 0]),
        #[cfg(target_arch = "x86_64")]
        ("unlink", Works, libc::SYS_unlink, vec![file]),
        #[cfg(target_arch = "x86_64")]
        ("rename", Works, libc::SYS_rename, vec![file, new]),
        #[cfg(target_arch = "x86_64")]
        ("link", Works, libc::SYS_link, vec![file, new]),
        #[cfg(target_arch = "x86_64")]
        ("symlink", Works, libc::SYS_symlink, vec![file, new]),
        #[cfg(target_arch = "x86_64")]
        ("mkdir", Works, libc::SYS_mkdir, vec![new, 0o700]),
        #[cfg(target_arch = "x86_64")]
        ("rmdir", Reaches, libc::SYS_rmdir, vec![file]),
        #[cfg(target_arch = "x86_64")]
        ("mknod", Works, libc::SYS_mknod, vec![new, 0o010_600, 0]),
        #[cfg(target_arch = "x86_64")]
        ("getdents", Works, libc::SYS_getdents, vec![DIRECTORY, buffer, 4096]),
        ("openat", Works, libc::SYS_openat, vec![CWD, file, 0, 0]),
        ("openat to write", Works, libc::SYS_openat, vec![CWD, file, 1, 0]),
        ("openat and truncate", Works, libc::SYS_openat, vec![CWD, file, int(libc::O_TRUNC), 0]),
        ("openat and create", Works, libc::SYS_openat, vec![CWD, new, int(libc::O_CREAT | libc::O_WRONLY), 0o600]),
        ("openat beneath a directory", Works, libc::SYS_openat, vec![DIRECTORY, text("file"), 0, 0]),
        ("openat O_TMPFILE", Works, libc::SYS_openat, vec![CWD, directory, int(libc::O_TMPFILE | libc::O_RDWR), 0o600]),
        ("openat O_PATH", Works, libc::SYS_openat, vec![CWD, file, int(libc::O_PATH | libc::O_CLOEXEC), 0]),
        ("openat O_PATH without close-on-exec", Works, libc::SYS_openat, vec![CWD, file, int(libc::O_PATH), 0]),
        ("openat2", Works, libc::SYS_openat2, vec![CWD, file, how, 24]),
        ("open_by_handle_at", Reaches, libc::SYS_open_by_handle_at, vec![DIRECTORY, buffer, 0]),
        ("name_to_handle_at", Works, libc::SYS_name_to_handle_at, vec![CWD, file, words(&[128, 0]), room(8), 0]),
        ("statx", Works, libc::SYS_statx, vec![CWD, file, 0, 0xfff, buffer]),
        ("newfstatat", Works, libc::SYS_newfstatat, vec![CWD, file, buffer, 0]),
        ("fstat", Works, libc::SYS_fstat, vec![FILE, buffer]),
        ("statfs", Works, libc::SYS_statfs, vec![file, buffer]),
        ("fstatfs", Works, libc::SYS_fstatfs, vec![FILE, buffer]),
        ("faccessat", Works, libc::SYS_faccessat, vec![CWD, file, 0]),
        ("faccessat2", Works, libc::SYS_faccessat2, vec![CWD, file, 0, 0]),
        ("readlinkat", Works, libc::SYS_readlinkat, vec![CWD, link, buffer, 100]),
        ("fchmodat", Works, libc::SYS_fchmodat, vec![CWD, file, 0o666]),
        ("fchmod", Works, libc::SYS_fchmod, vec![FILE, 0o666]),
        ("fchownat", Works, libc::SYS_fchownat, vec![CWD, file, NONE, NONE, 0]),
        ("fchown", Works, libc::SYS_fchown, vec![FILE, NONE, NONE]),
        ("utimensat", Works, libc::SYS_utimensat, vec![CWD, file, 0, 0]),
        ("utimensat by descriptor", Works, libc::SYS_utimensat, vec![FILE, 0, 0, 0]),
        ("setxattr", Works, libc::SYS_setxattr, vec![file, name, buffer, 1, 0]),
        ("fsetxattr", Works, libc::SYS_fsetxattr, vec![FILE, name, buffer, 1, 0]),
        ("getxattr", Reaches, libc::SYS_getxattr, vec![file, name, buffer, 1]),
        ("listxattr", Works, libc::SYS_listxattr, vec![file, buffer, 100]),
        ("removexattr", Reaches, libc::SYS_removexattr, vec![file, name]),
        ("truncate", Works, libc::SYS_truncate, vec![file, 0]),
        ("ftruncate", Works, libc::SYS_ftruncate, vec![FILE, 0]),
        ("fallocate", Works, libc::SYS_fallocate, vec![FILE, 0, 0, 4096]),
        ("unlinkat", Works, libc::SYS_unlinkat, vec![CWD, file, 0]),
        ("renameat2", Works, libc::SYS_renameat2, vec![CWD, file, CWD, new, 0]),
        ("linkat", Works, libc::SYS_linkat, vec![CWD, file, CWD, new, 0]),
        ("symlinkat", Works, libc::SYS_symlinkat, vec![file, CWD, new]),
        ("mkdirat", Works, libc::SYS_mkdirat, vec![CWD, new, 0o700]),
        ("mknodat", Works, libc::SYS_mknodat, vec![CWD, new, 0o010_600, 0]),
        ("getdents64", Works, libc::SYS_getdents64, vec![DIRECTORY, buffer, 4096]),
        ("getcwd", Works, libc::SYS_getcwd, vec![buffer, 4096]),
        ("chdir", Works, libc::SYS_chdir, vec![directory]),
        ("fchdir", Works, libc::SYS_fchdir, vec![DIRECTORY]),
        ("chroot", Reaches, libc::SYS_chroot, vec![directory]),
        ("flock", Works, libc::SYS_flock, vec![FILE, 2]),
        ("fsync", Works, libc::SYS_fsync, vec![FILE]),
        ("fdatasync", Works, libc::SYS_fdatasync, vec![FILE]),
        ("syncfs", Works, libc::SYS_syncfs, vec![FILE]),
        ("inotify_init1", Works, libc::SYS_inotify_init1, vec![0]),
        ("inotify_add_watch", Reaches, libc::SYS_inotify_add_watch, vec![FILE, file, 2]),
        ("fanotify_init", Reaches, libc::SYS_fanotify_init, vec![0, 0]),
        ("quotactl", Reaches, libc::SYS_quotactl, vec![0, 0, 0, 0]),
        ("copy_file_range", Reaches, libc::SYS_copy_file_range, vec![READ, 0, FILE, 0, 1, 0]),
        ("sendfile", Works, libc::SYS_sendfile, vec![SOCKET, READ, 0, 1]),
        ("splice", Reaches, libc::SYS_splice, vec![READ, 0, FILE, 0, 1, 0]),
    ]
}

/// On descriptors that it holds rightly.
fn descriptors() -> Vec<Row> {
    let buffer = room(4096);
    let vector = words(&[buffer, 8]);
    let fcntl = |command: i32, value: u64| vec![APPEND, int(command), value];
    vec![
        ("read", Works, libc::SYS_read, vec![FILE, buffer, 8]),
        ("write", Works, libc::SYS_write, vec![FILE, buffer, 8]),
        ("write to an append descriptor", Works, libc::SYS_write, vec![APPEND, buffer, 8]),
        ("lseek", Works, libc::SYS_lseek, vec![FILE, 0, 0]),
        ("close", Works, libc::SYS_close, vec![READ]),
        ("pread64", Works, libc::SYS_pread64, vec![FILE, buffer, 8, 0]),
        ("readv", Works, libc::SYS_readv, vec![FILE, vector, 1]),
        ("preadv2", Works, libc::SYS_preadv2, vec![FILE, vector, 1, 0, 0, 0]),
        ("writev", Works, libc::SYS_writev, vec![FILE, vector, 1]),
        ("pwrite64 to an append descriptor", Works, libc::SYS_pwrite64, vec![APPEND, buffer, 8, 0]),
        ("pwritev", Works, libc::SYS_pwritev, vec![APPEND, vector, 1, 0, 0]),
        // RWF_NOAPPEND of linux/fs.h: overwrites through an append descriptor.
        ("pwritev2 RWF_NOAPPEND", Works, libc::SYS_pwritev2, vec![APPEND, vector, 1, 0, 0, 0x20]),
        ("fcntl F_GETFD", Works, libc::SYS_fcntl, vec![FILE, int(libc::F_GETFD)]),
        ("fcntl F_SETFL without O_APPEND", Works, libc::SYS_fcntl, fcntl(libc::F_SETFL, 0)),
        ("fcntl F_SETFL O_ASYNC", Works, libc::SYS_fcntl, vec![SOCKET, int(libc::F_SETFL), int(libc::O_ASYNC)]),
        ("fcntl F_GETFL", Works, libc::SYS_fcntl, fcntl(libc::F_GETFL, 0)),
        ("fcntl F_SETOWN", Works, libc::SYS_fcntl, vec![SOCKET, int(libc::F_SETOWN), 1]),
        ("fcntl F_SETSIG", Works, libc::SYS_fcntl, vec![SOCKET, 10, 9]),
        ("fcntl F_DUPFD", Works, libc::SYS_fcntl, fcntl(libc::F_DUPFD, 0)),
        ("fcntl F_SETLEASE", Reaches, libc::SYS_fcntl, vec![READ, int(libc::F_SETLEASE), 0]),
        ("fcntl F_NOTIFY", Works, libc::SYS_fcntl, vec![DIRECTORY, int(libc::F_NOTIFY), 0]),
        ("fcntl F_SETPIPE_SZ", Reaches, libc::SYS_fcntl, fcntl(libc::F_SETPIPE_SZ, 4096)),
        ("fcntl F_ADD_SEALS", Reaches, libc::SYS_fcntl, vec![FILE, int(libc::F_ADD_SEALS), 0]),
        ("dup", Works, libc::SYS_dup, vec![FILE]),
        ("dup3", Works, libc::SYS_dup3, vec![FILE, 40, 0]),
        #[cfg(target_arch = "x86_64")]
        ("dup2", Works, libc::SYS_dup2, vec![FILE, 40]),
        ("close_range", Works, libc::SYS_close_range, vec![40, 50, 0]),
        ("ioctl FIFREEZE", Reaches, libc::SYS_ioctl, vec![DIRECTORY, 0xc004_5877, 0]),
        ("ioctl FITHAW", Reaches, libc::SYS_ioctl, vec![DIRECTORY, 0xc004_5878, 0]),
        ("ioctl FITRIM", Reaches, libc::SYS_ioctl, vec![DIRECTORY, 0xc018_5879, buffer]),
        ("ioctl TIOCSTI", Reaches, libc::SYS_ioctl, vec![FILE, libc::TIOCSTI, buffer]),
        ("ioctl FIONREAD", Works, libc::SYS_ioctl, vec![SOCKET, libc::FIONREAD, buffer]),
        ("ioctl FIOASYNC", Works, libc::SYS_ioctl, vec![SOCKET, libc::FIOASYNC, buffer]),
        ("ioctl FICLONE", Reaches, libc::SYS_ioctl, vec![FILE, 0x4004_9409, READ]),
        ("epoll_create1", Works, libc::SYS_epoll_create1, vec![0]),
        ("epoll_ctl on another", Works, libc::SYS_epoll_ctl, vec![EPOLL, 1, SOCKET, buffer]),
        ("epoll_pwait on another", Works, libc::SYS_epoll_pwait, vec![EPOLL, buffer, 1, 0, 0, 8]),
        ("epoll_pwait2", Works, libc::SYS_epoll_pwait2, vec![EPOLL, buffer, 1, words(&[0, 0]), 0, 8]),
        ("ppoll", Works, libc::SYS_ppoll, vec![0, 0, words(&[0, 0]), 0, 8]),
        ("pselect6", Works, libc::SYS_pselect6, vec![0, 0, 0, 0, words(&[0, 0]), 0]),
        #[cfg(target_arch = "x86_64")]
        ("poll", Works, libc::SYS_poll, vec![0, 0, 0]),
        ("eventfd2", Works, libc::SYS_eventfd2, vec![0, 0]),
        ("pipe2", Works, libc::SYS_pipe2, vec![buffer, 0]),
        #[cfg(target_arch = "x86_64")]
        ("pipe", Works, libc::SYS_pipe, vec![buffer]),
        ("tee", Reaches, libc::SYS_tee, vec![FILE, READ, 1, 0]),
        ("vmsplice", Reaches, libc::SYS_vmsplice, vec![FILE, vector, 1, 0]),
        ("sync_file_range", Works, libc::SYS_sync_file_range, vec![FILE, 0, 0, 0]),
        ("readahead", Works, libc::SYS_readahead, vec![READ, 0, 0]),
        ("fadvise64", Works, libc::SYS_fadvise64, vec![READ, 0, 0, 0]),
    ]
}

fn network() -> Vec<Row> {
    let buffer = room(4096);
    let unix = address(libc::AF_UNIX, "/tmp/stage/socket");
    let inet = address(libc::AF_INET, "");
    vec![
        ("socket unix", Works, libc::SYS_socket, vec![int(libc::AF_UNIX), 1, 0]),
        ("socket inet", Works, libc::SYS_socket, vec![int(libc::AF_INET), 1, 0]),
        ("socket inet6", Works, libc::SYS_socket, vec![int(libc::AF_INET6), 2, 0]),
        ("socket netlink", Works, libc::SYS_socket, vec![int(libc::AF_NETLINK), 3, 0]),
        ("socket vsock", Reaches, libc::SYS_socket, vec![int(libc::AF_VSOCK), 1, 0]),
        ("socket alg", Reaches, libc::SYS_socket, vec![int(libc::AF_ALG), 5, 0]),
        ("socketpair", Works, libc::SYS_socketpair, vec![1, 5, 0, buffer]),
        ("socketpair as the broker's", Works, libc::SYS_socketpair, vec![1, 5 | int(libc::SOCK_CLOEXEC), 0, buffer]),
        ("connect", Reaches, libc::SYS_connect, vec![SOCKET, unix, 110]),
        ("connect inet", Reaches, libc::SYS_connect, vec![SOCKET, inet, 16]),
        ("bind", Reaches, libc::SYS_bind, vec![SOCKET, unix, 110]),
        ("listen", Reaches, libc::SYS_listen, vec![SOCKET, 1]),
        ("accept4", Reaches, libc::SYS_accept4, vec![SOCKET, 0, 0, 0]),
        ("shutdown", Works, libc::SYS_shutdown, vec![SOCKET, 2]),
        ("getsockname", Works, libc::SYS_getsockname, vec![SOCKET, buffer, words(&[110])]),
        ("getpeername", Works, libc::SYS_getpeername, vec![SOCKET, buffer, words(&[110])]),
        ("setsockopt", Works, libc::SYS_setsockopt, vec![SOCKET, 1, 9, words(&[1]), 4]),
        ("setsockopt SO_PASSCRED", Works, libc::SYS_setsockopt, vec![SOCKET, 1, 16, words(&[1]), 4]),
        ("getsockopt", Works, libc::SYS_getsockopt, vec![SOCKET, 1, 3, buffer, words(&[4])]),
        ("getsockopt SO_PEERCRED", Works, libc::SYS_getsockopt, vec![SOCKET, 1, 17, buffer, words(&[12])]),
        ("sendto the broker", Works, libc::SYS_sendto, vec![3, buffer, 7, int(libc::MSG_DONTWAIT), 0, 0]),
        ("sendto the broker with an address", Reaches, libc::SYS_sendto, vec![3, buffer, 8, 0, unix, 110]),
        ("sendto another", Works, libc::SYS_sendto, vec![SOCKET, buffer, 8, 0, 0, 0]),
        ("sendmsg the broker", Works, libc::SYS_sendmsg, vec![3, message_plain(), 0]),
        ("sendmsg the broker a descriptor", Works, libc::SYS_sendmsg, vec![3, message(Some(FILE)), 0]),
        ("sendmsg another a descriptor", Works, libc::SYS_sendmsg, vec![SOCKET, message(Some(FILE)), 0]),
        ("sendmmsg", Works, libc::SYS_sendmmsg, vec![3, message_plain(), 0, 0]),
        ("recvmsg from the broker", Reaches, libc::SYS_recvmsg, vec![3, message(None), int(libc::MSG_DONTWAIT)]),
        ("recvmsg from another", Works, libc::SYS_recvmsg, vec![PEER, message(None), int(libc::MSG_DONTWAIT)]),
        ("recvfrom another", Works, libc::SYS_recvfrom, vec![PEER, buffer, 8, 0, 0, 0]),
        ("recvmmsg", Reaches, libc::SYS_recvmmsg, vec![3, room(64), 1, int(libc::MSG_DONTWAIT), 0]),
        ("io_uring_setup", Reaches, libc::SYS_io_uring_setup, vec![8, room(120)]),
        ("io_uring_enter", Reaches, libc::SYS_io_uring_enter, vec![NONE, 0, 0, 0, 0, 0]),
        ("io_uring_register", Reaches, libc::SYS_io_uring_register, vec![NONE, 0, 0, 0]),
        ("io_setup", Reaches, libc::SYS_io_setup, vec![8, room(8)]),
    ]
}

/// A message without control data.
fn message_plain() -> u64 {
    words(&[0, 0, words(&[room(8), 1]), 1, 0, 0, 0])
}

fn processes() -> Vec<Row> {
    let buffer = room(4096);
    let nowhere = text("/tmp/stage/nothing");
    let arguments = words(&[nowhere, 0]);
    let me = 0;
    vec![
        ("execve", Reaches, libc::SYS_execve, vec![nowhere, arguments, words(&[0])]),
        ("execveat", Reaches, libc::SYS_execveat, vec![CWD, nowhere, arguments, words(&[0]), 0]),
        #[cfg(target_arch = "x86_64")]
        ("fork", Works, libc::SYS_fork, vec![]),
        #[cfg(target_arch = "x86_64")]
        ("vfork", Untried, libc::SYS_vfork, vec![]),
        ("clone", Works, libc::SYS_clone, vec![int(libc::SIGCHLD), 0, 0, 0, 0]),
        ("clone a thread", Reaches, libc::SYS_clone, vec![int(libc::CLONE_THREAD), 0, 0, 0, 0]),
        (
            "clone a user namespace",
            Untried,
            libc::SYS_clone,
            vec![int(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0, 0, 0],
        ),
        ("clone3", Reaches, libc::SYS_clone3, vec![0, 0]),
        ("kill itself with nothing", Works, libc::SYS_kill, vec![me, 0]),
        ("kill process 1 with nothing", Reaches, libc::SYS_kill, vec![1, 0]),
        ("kill process 1 with SIGKILL", Reaches, libc::SYS_kill, vec![1, 9]),
        ("tkill", Reaches, libc::SYS_tkill, vec![1, 0]),
        ("tgkill another", Reaches, libc::SYS_tgkill, vec![1, 1, 6]),
        ("rt_sigqueueinfo", Reaches, libc::SYS_rt_sigqueueinfo, vec![1, 9, buffer]),
        ("rt_tgsigqueueinfo", Reaches, libc::SYS_rt_tgsigqueueinfo, vec![1, 1, 9, buffer]),
        ("pidfd_open", Works, libc::SYS_pidfd_open, vec![1, 0]),
        ("pidfd_getfd", Reaches, libc::SYS_pidfd_getfd, vec![FILE, 0, 0]),
        ("pidfd_send_signal", Reaches, libc::SYS_pidfd_send_signal, vec![FILE, 9, 0, 0]),
        ("ptrace", Works, libc::SYS_ptrace, vec![0, 0, 0, 0]),
        ("process_vm_readv", Reaches, libc::SYS_process_vm_readv, vec![1, buffer, 1, buffer, 1, 0]),
        ("process_vm_writev", Reaches, libc::SYS_process_vm_writev, vec![1, buffer, 1, buffer, 1, 0]),
        ("process_madvise", Reaches, libc::SYS_process_madvise, vec![FILE, buffer, 1, 4, 0]),
        ("kcmp", Reaches, libc::SYS_kcmp, vec![1, 1, 0, 0, 0]),
        ("getpid", Works, libc::SYS_getpid, vec![]),
        ("gettid", Works, libc::SYS_gettid, vec![]),
        ("getppid", Works, libc::SYS_getppid, vec![]),
        ("getuid", Works, libc::SYS_getuid, vec![]),
        ("setuid", Works, libc::SYS_setuid, vec![u64::from(super::ACCOUNT)]),
        ("setresuid", Works, libc::SYS_setresuid, vec![NONE, NONE, NONE]),
        ("setgroups", Reaches, libc::SYS_setgroups, vec![0, 0]),
        ("setsid", Works, libc::SYS_setsid, vec![]),
        ("setpgid", Works, libc::SYS_setpgid, vec![0, 0]),
        ("capget", Reaches, libc::SYS_capget, vec![0, 0]),
        ("capset", Reaches, libc::SYS_capset, vec![0, 0]),
        ("wait4", Reaches, libc::SYS_wait4, vec![NONE, 0, 1, 0]),
        ("waitid", Reaches, libc::SYS_waitid, vec![0, 0, 0, 5, 0]),
        ("prctl PR_GET_DUMPABLE", Works, libc::SYS_prctl, vec![3]),
        ("prctl PR_SET_DUMPABLE", Works, libc::SYS_prctl, vec![4, 1]),
        ("prctl PR_SET_NAME", Works, libc::SYS_prctl, vec![15, nowhere]),
        ("seccomp", Works, libc::SYS_seccomp, vec![2, 0, words(&[0x7fff_0000])]),
        ("personality", Works, libc::SYS_personality, vec![0xffff_ffff]),
        ("prlimit64 its own", Works, libc::SYS_prlimit64, vec![0, 7, 0, buffer]),
        ("prlimit64 another's", Reaches, libc::SYS_prlimit64, vec![1, 7, 0, buffer]),
        ("setrlimit", Works, libc::SYS_setrlimit, vec![4, words(&[0, 0])]),
        ("getrusage", Works, libc::SYS_getrusage, vec![0, buffer]),
        ("setpriority", Works, libc::SYS_setpriority, vec![0, 0, 19]),
        ("sched_setscheduler", Works, libc::SYS_sched_setscheduler, vec![0, 0, buffer]),
        ("sched_yield", Works, libc::SYS_sched_yield, vec![]),
        ("ioprio_set", Works, libc::SYS_ioprio_set, vec![1, 0, 0]),
        ("unshare", Works, libc::SYS_unshare, vec![int(libc::CLONE_FS)]),
        ("unshare a user namespace", Untried, libc::SYS_unshare, vec![int(libc::CLONE_NEWUSER)]),
        ("setns", Reaches, libc::SYS_setns, vec![FILE, 0]),
        ("exit", Untried, libc::SYS_exit, vec![0]),
        ("restart_syscall", Reaches, libc::SYS_restart_syscall, vec![]),
        ("umask", Works, libc::SYS_umask, vec![0o77]),
        ("set_tid_address", Works, libc::SYS_set_tid_address, vec![buffer]),
        ("set_robust_list", Works, libc::SYS_set_robust_list, vec![buffer, 24]),
        ("get_robust_list", Works, libc::SYS_get_robust_list, vec![0, buffer, buffer]),
        ("futex", Works, libc::SYS_futex, vec![buffer, 1, 1, 0, 0, 0]),
        ("landlock_create_ruleset", Works, libc::SYS_landlock_create_ruleset, vec![0, 0, 1]),
        ("landlock_restrict_self", Reaches, libc::SYS_landlock_restrict_self, vec![FILE, 0]),
        ("landlock_add_rule", Reaches, libc::SYS_landlock_add_rule, vec![FILE, 1, buffer, 0]),
    ]
}

fn memory() -> Vec<Row> {
    let room = room(8192);
    let page = room.next_multiple_of(4096);
    vec![
        ("brk", Works, libc::SYS_brk, vec![0]),
        ("mmap memory", Works, libc::SYS_mmap, vec![0, 4096, RW, ANONYMOUS, NONE, 0]),
        ("mmap shared memory", Works, libc::SYS_mmap, vec![0, 4096, RW, SHARED | int(libc::MAP_ANONYMOUS), NONE, 0]),
        ("mmap code", Works, libc::SYS_mmap, vec![0, 4096, RX, ANONYMOUS, NONE, 0]),
        ("mmap a file", Works, libc::SYS_mmap, vec![0, 4096, 1, PRIVATE, READ, 0]),
        ("mmap a file shared", Works, libc::SYS_mmap, vec![0, 4096, RW, SHARED, FILE, 0]),
        ("mmap a file's code", Works, libc::SYS_mmap, vec![0, 4096, RX, PRIVATE, READ, 0]),
        ("mprotect to read", Works, libc::SYS_mprotect, vec![page, 4096, 3]),
        ("mprotect to code", Works, libc::SYS_mprotect, vec![page, 4096, 5]),
        ("pkey_mprotect", Works, libc::SYS_pkey_mprotect, vec![page, 4096, 5, NONE]),
        ("munmap", Works, libc::SYS_munmap, vec![page, 0x1000]),
        ("mremap", Reaches, libc::SYS_mremap, vec![NONE, 0, 0, 0, 0]),
        ("madvise", Works, libc::SYS_madvise, vec![page, 4096, 0]),
        ("memfd_create", Works, libc::SYS_memfd_create, vec![text("x"), 0]),
        ("memfd_secret", Reaches, libc::SYS_memfd_secret, vec![1]),
        ("userfaultfd", Reaches, libc::SYS_userfaultfd, vec![1]),
        ("remap_file_pages", Reaches, libc::SYS_remap_file_pages, vec![page, 4096, 1, 0, 0]),
        ("mlock", Reaches, libc::SYS_mlock, vec![NONE, 4096]),
        ("msync", Works, libc::SYS_msync, vec![page, 4096, 1]),
        ("membarrier", Reaches, libc::SYS_membarrier, vec![0, 0]),
        ("rseq", Reaches, libc::SYS_rseq, vec![0, 0, 0, 0]),
        ("shmget", Reaches, libc::SYS_shmget, vec![0, 4096, 0o600]),
        ("msgget", Reaches, libc::SYS_msgget, vec![0, 0o600]),
        ("semget", Reaches, libc::SYS_semget, vec![0, 1, 0o600]),
        ("mq_open", Reaches, libc::SYS_mq_open, vec![text("/x"), 0, 0, 0]),
        ("mbind", Reaches, libc::SYS_mbind, vec![page, 4096, 99, 0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("arch_prctl", Works, libc::SYS_arch_prctl, vec![0x1003, page]),
        #[cfg(target_arch = "x86_64")]
        ("modify_ldt", Reaches, libc::SYS_modify_ldt, vec![99, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("iopl", Reaches, libc::SYS_iopl, vec![0]),
        #[cfg(target_arch = "x86_64")]
        ("ioperm", Reaches, libc::SYS_ioperm, vec![0, 1, 1]),
    ]
}

fn kernel() -> Vec<Row> {
    let buffer = room(4096);
    let directory = text(STAGE);
    let kind = text("tmpfs");
    vec![
        ("mount", Reaches, libc::SYS_mount, vec![kind, directory, kind, 0, 0]),
        ("umount2", Reaches, libc::SYS_umount2, vec![directory, 0]),
        ("pivot_root", Reaches, libc::SYS_pivot_root, vec![directory, directory]),
        ("open_tree", Works, libc::SYS_open_tree, vec![CWD, directory, 0]),
        ("open_tree a clone", Reaches, libc::SYS_open_tree, vec![CWD, directory, 1]),
        ("move_mount", Reaches, libc::SYS_move_mount, vec![FILE, 0, FILE, 0, 0]),
        ("fsopen", Reaches, libc::SYS_fsopen, vec![kind, 0]),
        ("fsmount", Reaches, libc::SYS_fsmount, vec![FILE, 0, 0]),
        ("fspick", Reaches, libc::SYS_fspick, vec![CWD, directory, 0]),
        ("mount_setattr", Reaches, libc::SYS_mount_setattr, vec![CWD, directory, 0, 0, 0]),
        ("bpf", Reaches, libc::SYS_bpf, vec![0, buffer, 8]),
        ("perf_event_open", Reaches, libc::SYS_perf_event_open, vec![buffer, 0, NONE, NONE, 0]),
        ("keyctl", Reaches, libc::SYS_keyctl, vec![0, NONE - 2, 1]),
        ("add_key", Reaches, libc::SYS_add_key, vec![0, 0, 0, 0, 0]),
        ("request_key", Reaches, libc::SYS_request_key, vec![0, 0, 0, 0]),
        // With wrong magic numbers, whoever may.
        ("reboot", Reaches, libc::SYS_reboot, vec![0, 0, 0, 0]),
        ("init_module", Reaches, libc::SYS_init_module, vec![0, 0, 0]),
        ("finit_module", Reaches, libc::SYS_finit_module, vec![NONE, 0, 0]),
        ("delete_module", Reaches, libc::SYS_delete_module, vec![0, 0]),
        ("kexec_load", Reaches, libc::SYS_kexec_load, vec![0, 0, 0, 0]),
        ("swapon", Reaches, libc::SYS_swapon, vec![0, 0]),
        ("swapoff", Reaches, libc::SYS_swapoff, vec![0]),
        ("acct", Reaches, libc::SYS_acct, vec![0]),
        ("syslog", Reaches, libc::SYS_syslog, vec![3, buffer, 1]),
        ("sethostname", Reaches, libc::SYS_sethostname, vec![0, 0]),
        ("setdomainname", Reaches, libc::SYS_setdomainname, vec![0, 0]),
        ("settimeofday", Reaches, libc::SYS_settimeofday, vec![0, words(&[0])]),
        ("clock_settime", Reaches, libc::SYS_clock_settime, vec![1, buffer]),
        ("clock_adjtime", Reaches, libc::SYS_clock_adjtime, vec![99, buffer]),
        ("clock_gettime", Works, libc::SYS_clock_gettime, vec![0, buffer]),
        ("clock_nanosleep", Works, libc::SYS_clock_nanosleep, vec![1, 0, words(&[0, 0]), 0]),
        ("nanosleep", Works, libc::SYS_nanosleep, vec![words(&[0, 0]), 0]),
        ("vhangup", Reaches, libc::SYS_vhangup, vec![]),
        ("uname", Works, libc::SYS_uname, vec![buffer]),
        ("sysinfo", Works, libc::SYS_sysinfo, vec![buffer]),
        ("times", Works, libc::SYS_times, vec![buffer]),
        ("getcpu", Works, libc::SYS_getcpu, vec![buffer, 0]),
        ("getrandom", Works, libc::SYS_getrandom, vec![buffer, 8, 0]),
        ("timer_create", Works, libc::SYS_timer_create, vec![1, 0, buffer]),
        ("timerfd_create", Works, libc::SYS_timerfd_create, vec![1, 0]),
        ("setitimer", Works, libc::SYS_setitimer, vec![0, words(&[0, 0, 0, 0]), 0]),
        #[cfg(target_arch = "x86_64")]
        ("alarm", Works, libc::SYS_alarm, vec![0]),
        ("signalfd4", Works, libc::SYS_signalfd4, vec![NONE, buffer, 8, 0]),
        ("rt_sigaction", Works, libc::SYS_rt_sigaction, vec![10, 0, buffer, 8]),
        ("rt_sigprocmask", Works, libc::SYS_rt_sigprocmask, vec![0, 0, buffer, 8]),
        ("rt_sigpending", Works, libc::SYS_rt_sigpending, vec![buffer, 8]),
        ("rt_sigtimedwait", Reaches, libc::SYS_rt_sigtimedwait, vec![buffer, 0, words(&[0, 0]), 8]),
        ("sigaltstack", Works, libc::SYS_sigaltstack, vec![0, buffer]),
        ("sync", Untried, libc::SYS_sync, vec![]),
        ("no such call", Reaches, 1023, vec![]),
    ]
}

/// Every attack.
pub(crate) fn all() -> Vec<Attack> {
    let rows = [files(), descriptors(), network(), processes(), memory(), kernel()].into_iter().flatten();
    let mut attacks: Vec<Attack> = rows
        .map(|(name, control, number, arguments)| Attack {
            name,
            control,
            act: Box::new(move || raw::call(number, &arguments)),
        })
        .collect();
    // Its own process id, as the confined process knows it.
    let aborts = || {
        let me = u64::from(std::process::id());
        raw::call(libc::SYS_tgkill, &[me, me, int(libc::SIGABRT)])
    };
    attacks.push(Attack { name: "tgkill itself with SIGABRT", control: Untried, act: Box::new(aborts) });
    let kills = || {
        let me = u64::from(std::process::id());
        raw::call(libc::SYS_tgkill, &[me, me, 0])
    };
    attacks.push(Attack { name: "tgkill itself with nothing", control: Works, act: Box::new(kills) });
    #[cfg(target_arch = "x86_64")]
    {
        // Bit 30 marks the x32 interface, whose calls a filter that looks at
        // numbers only would miss.
        let x32 = |number: c_long| move || raw::call(number | 0x4000_0000, &[FILE, 0, 0]);
        attacks.push(Attack { name: "x32 read", control: Reaches, act: Box::new(x32(libc::SYS_read)) });
        attacks.push(Attack { name: "x32 getpid", control: Reaches, act: Box::new(x32(libc::SYS_getpid)) });
        // Number 20 of i386 is getpid, of x86_64 writev.
        attacks.push(Attack { name: "int 0x80", control: Reaches, act: Box::new(|| raw::call_i386(20)) });
    }
    attacks
}
