//! What a fallen worker calls to get at a file without asking: rows of
//! `confinement/attacks.rs` by name, and rows on the channel, which a worker
//! there does not have.

use nix::libc;

use crate::attacks;
use crate::raw::{self, room, text, words};

/// A call, and what kind of way to a file it is.
pub(crate) struct Row {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) act: Box<dyn Fn() -> i64>,
}

/// Kinds and the attacks of each, by name. What an architecture lacks is left
/// out there, too.
const KINDS: &[(&str, &[&str])] = &[
    (
        "opens by name",
        &[
            "open",
            "creat",
            "openat",
            "openat to write",
            "openat and truncate",
            "openat and create",
            "openat beneath a directory",
            "openat O_TMPFILE",
            "openat O_PATH",
            "openat O_PATH without close-on-exec",
            "openat2",
            "open_by_handle_at",
            "name_to_handle_at",
            "mq_open",
            "truncate",
            "chdir",
            "chroot",
            "linkat",
            "renameat2",
            "unlinkat",
            "symlinkat",
            "mknodat",
        ],
    ),
    (
        "makes a descriptor",
        &[
            "memfd_create",
            "memfd_secret",
            "userfaultfd",
            "dup",
            "dup2",
            "dup3",
            "fcntl F_DUPFD",
            "pipe",
            "pipe2",
            "eventfd2",
            "epoll_create1",
            "signalfd4",
            "timerfd_create",
            "inotify_init1",
            "fanotify_init",
            "bpf",
            "perf_event_open",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "io_setup",
            "landlock_create_ruleset",
            "seccomp",
            "pidfd_open",
            "pidfd_getfd",
            "shmget",
        ],
    ),
    (
        "makes a socket",
        &[
            "socket unix",
            "socket inet",
            "socket inet6",
            "socket netlink",
            "socket vsock",
            "socket alg",
            "socketpair",
            "socketpair as the broker's",
            "connect",
            "bind",
            "listen",
            "accept4",
        ],
    ),
    (
        "receives or sends a descriptor",
        &[
            "recvmsg from another",
            "recvfrom another",
            "recvmmsg",
            "sendmsg the broker a descriptor",
            "sendmsg another a descriptor",
            "sendmmsg",
            "sendto another",
        ],
    ),
    (
        "reads another process",
        &[
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "kcmp",
            "process_madvise",
            "setns",
            "unshare",
            "fork",
            "clone",
            "clone a thread",
            "clone3",
            "execve",
            "execveat",
        ],
    ),
    (
        "mounts",
        &[
            "mount",
            "umount2",
            "pivot_root",
            "open_tree",
            "open_tree a clone",
            "move_mount",
            "fsopen",
            "fsmount",
            "fspick",
            "mount_setattr",
        ],
    ),
    (
        "moves bytes past read and write",
        &[
            "mmap a file",
            "mmap a file shared",
            "pread64",
            "readv",
            "preadv2",
            "writev",
            "pwritev2 RWF_NOAPPEND",
            "sendfile",
            "splice",
            "tee",
            "vmsplice",
            "copy_file_range",
            "readahead",
            "ioctl FICLONE",
            "ftruncate",
            "fallocate",
            "fcntl F_SETFL without O_APPEND",
        ],
    ),
];

fn number(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

/// A `struct msghdr` with room for bytes and for descriptors.
fn message() -> u64 {
    words(&[0, 0, words(&[room(64), 64]), 1, room(64), 64, 0])
}

/// Every row; `channel` is the channel's number.
pub(crate) fn rows(channel: u64) -> Vec<Row> {
    let mut rows: Vec<Row> = attacks::all()
        .into_iter()
        .filter_map(|attack| {
            let (kind, _) = KINDS.iter().find(|(_, names)| names.contains(&attack.name))?;
            Some(Row { kind, name: attack.name.to_owned(), act: attack.act })
        })
        .collect();
    let wait = number(libc::MSG_DONTWAIT);
    let calls: [(&'static str, i64, Vec<u64>); 14] = [
        ("recvmsg", libc::SYS_recvmsg, vec![channel, message(), wait]),
        ("recvmsg MSG_PEEK", libc::SYS_recvmsg, vec![channel, message(), wait | number(libc::MSG_PEEK)]),
        ("recvmmsg", libc::SYS_recvmmsg, vec![channel, message(), 1, wait, 0]),
        ("recvfrom", libc::SYS_recvfrom, vec![channel, room(64), 64, wait, 0, 0]),
        ("readv", libc::SYS_readv, vec![channel, words(&[room(64), 64]), 1]),
        ("splice", libc::SYS_splice, vec![channel, 0, channel, 0, 64, 0]),
        ("dup to the broker's number", libc::SYS_dup3, vec![channel, 3, 0]),
        ("accept4", libc::SYS_accept4, vec![channel, 0, 0, 0]),
        ("getsockopt SO_PEERPIDFD", libc::SYS_getsockopt, vec![channel, 1, 77, room(8), words(&[4])]),
        ("ioctl SIOCUNIXFILE", libc::SYS_ioctl, vec![channel, 0x89e0, 0]),
        ("ioctl SIOCGSKNS", libc::SYS_ioctl, vec![channel, 0x894c, 0]),
        ("sendmsg a descriptor", libc::SYS_sendmsg, vec![channel, message(), wait]),
        ("openat beneath it", libc::SYS_openat, vec![channel, text("x"), 0, 0]),
        ("openat /proc/self/fd", libc::SYS_openat, vec![number(libc::AT_FDCWD), text("/proc/self/fd/5"), 0, 0]),
    ];
    rows.extend(calls.into_iter().map(|(name, call, arguments)| Row {
        kind: "on the channel",
        name: format!("channel: {name}"),
        act: Box::new(move || raw::call(call, &arguments)),
    }));
    rows
}
