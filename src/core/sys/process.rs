//! Processes: birth by exec of our own file, names, and what happened to them.
//!
//! Trust: called by broker (once, as root) and spawner with fixed arguments.

use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

/// First number of the descriptors that a child is handed; 0, 1 and 2 are
/// inherited.
pub const FIRST_HANDED: RawFd = 3;

/// How a child is born.
#[derive(Clone, Copy, Debug)]
pub struct Birth<'a> {
    /// The file to execute, by descriptor, so that an upgrade on disk can't
    /// mix versions.
    pub executable: BorrowedFd<'a>,
    /// The only argument, which is the child's name in `ps`.
    pub name: &'a CStr,
    /// Becomes descriptors 0, 1 and 2.
    pub null: BorrowedFd<'a>,
    /// Become descriptors [`FIRST_HANDED`] and on; none of them may lie in
    /// that range under another place.
    pub handed: &'a [BorrowedFd<'a>],
    /// Whether the child is PID 1 of a new PID namespace (`CAP_SYS_ADMIN`).
    pub pid_namespace: bool,
    /// Whether it leads a session of its own, out of a terminal's signals.
    pub session: bool,
}

/// Starts a child with an empty environment, an unblocked signal mask and
/// exactly the descriptors of `birth`.
///
/// # Errors
/// As clone(2); `EINVAL` if a descriptor would be overwritten before it is
/// used. What fails later in the child ends it with status 126.
pub fn spawn(birth: &Birth<'_>) -> io::Result<Pid> {
    let places = birth.handed.iter().zip(FIRST_HANDED..);
    let after = FIRST_HANDED + libc::c_int::try_from(birth.handed.len()).map_err(|_| Errno::EINVAL)?;
    let taken = |number: RawFd| number < after;
    if taken(birth.executable.as_raw_fd())
        || places.into_iter().any(|(handed, place)| taken(handed.as_raw_fd()) && handed.as_raw_fd() != place)
    {
        return Err(Errno::EINVAL.into());
    }
    let argv = [birth.name.as_ptr(), ptr::null()];
    let envp = [ptr::null()];
    let namespace = if birth.pid_namespace { libc::CLONE_NEWPID } else { 0 };
    let flags = libc::c_ulong::try_from(namespace | libc::SIGCHLD).map_err(|_| Errno::EINVAL)?;
    // SAFETY: without CLONE_VM this is fork(2) in a process with one thread
    // (broker before it starts any, spawner always), so the child may go on;
    // it makes only system calls on memory made before. A null stack means
    // "the parent's, copied".
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    Errno::result(pid)?;
    if pid == 0 {
        become_child(birth, &argv, &envp);
    }
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::EINVAL)?;
    Ok(Pid::from_raw(pid))
}

/// Divides this process in two, as fork(2). Returns the child's process id, or
/// `None` in the child.
///
/// # Errors
/// As fork(2); `EDEADLK` if this process has more than one thread, for its
/// child would have only one, and locks that the others hold.
pub fn fork() -> io::Result<Option<Pid>> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(Errno::EDEADLK.into());
    }
    // SAFETY: the only thread is this one, so the child has all that its parent
    // had, and no lock is held by a thread that it lacks.
    let pid = Errno::result(unsafe { libc::fork() })?;
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// The child between fork and exec: system calls only.
fn become_child(birth: &Birth<'_>, argv: &[*const libc::c_char; 2], envp: &[*const libc::c_char; 1]) -> ! {
    // SAFETY: every call takes plain numbers or pointers to memory that the
    // parent made before the fork and that is never freed here; the process
    // has one thread, and it leaves by exec or _exit.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        if birth.session && libc::setsid() < 0 {
            libc::_exit(126);
        }
        for number in 0..FIRST_HANDED {
            if libc::dup2(birth.null.as_raw_fd(), number) < 0 {
                libc::_exit(126);
            }
        }
        let mut number = FIRST_HANDED;
        for handed in birth.handed {
            // A descriptor that already has its number keeps it, without
            // close-on-exec.
            let placed = if handed.as_raw_fd() == number {
                libc::fcntl(number, libc::F_SETFD, 0)
            } else {
                libc::dup2(handed.as_raw_fd(), number)
            };
            if placed < 0 {
                libc::_exit(126);
            }
            number += 1;
        }
        // Everything else closes as exec succeeds, the executable too.
        if libc::syscall(libc::SYS_close_range, number, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
            libc::_exit(126);
        }
        libc::syscall(
            libc::SYS_execveat,
            birth.executable.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::_exit(126)
    }
}

/// Sets this process's short name, at most 15 bytes.
///
/// # Errors
/// None that prctl(2) lists for it.
pub fn name_self(name: &CStr) -> io::Result<()> {
    Ok(nix::sys::prctl::set_name(name)?)
}

/// Shows `name` as this process's command line in `ps`, cut to the room that
/// the real one took.
///
/// # Errors
/// If `/proc/self` can't be read or written.
pub fn rename_self(name: &CStr) -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/stat")?;
    // Fields 48 and 49 of proc_pid_stat(5), counted behind the name's bracket,
    // which ends field 2.
    let fields: Vec<&str> = status.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    let (Some(start), Some(end)) = (field(48), field(49)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat has no arg_start"));
    };
    let room = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let mut shown = vec![0; room];
    let length = name.count_bytes().min(room.saturating_sub(1));
    shown[..length].copy_from_slice(&name.to_bytes()[..length]);
    // The memory that the kernel laid the arguments into at exec; the standard
    // library copies them out on request, which `main` has done before.
    OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(&shown, start)
}

/// Has a fault end this process by its own signal. The standard library's handler,
/// which looks for overflown stacks, first asks for calls that no filter has:
/// then it is the filter that ends the process, and a record would tell of a
/// forbidden call.
///
/// # Errors
/// None that sigaction(2) lists for these.
pub fn fault_plainly() -> io::Result<()> {
    let plainly = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: no handler of ours is installed, and what the old one guarded,
        // the end after a fault, comes all the same.
        unsafe { sigaction(signal, &plainly) }?;
    }
    Ok(())
}

/// Leaves being asked to end to the broker. A signal to a whole control group
/// (systemd knows no `KillMode=` of a masked unit) or session would otherwise end
/// a child before its broker has brought what is under way to an end.
///
/// # Errors
/// None that sigaction(2) lists for these.
pub fn ignore_requests_to_end() -> io::Result<()> {
    let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: no handler of ours is replaced, and none is installed.
        unsafe { sigaction(signal, &ignored) }?;
    }
    Ok(())
}

/// Ends this process at once, without running exit handlers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(status) }
}

/// `reboot(2)` with one of the `LINUX_REBOOT_CMD_*` numbers that the policy's
/// modes mean. Returns only on failure.
///
/// # Errors
/// `EPERM` without `CAP_SYS_BOOT`.
pub fn reboot(command: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a number only.
    Errno::result(unsafe { libc::reboot(command) })?;
    Ok(())
}

/// The version of Landlock that the kernel has, by `landlock_create_ruleset(2)`.
///
/// # Errors
/// `ENOSYS` without Landlock, `EOPNOTSUPP` if it is not enabled.
pub fn landlock_version() -> Result<u32, Errno> {
    const VERSION: libc::c_ulong = 1;
    // SAFETY: with this flag the kernel takes no ruleset and makes no descriptor.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<libc::c_void>(), 0_usize, VERSION) };
    Errno::result(version).map(|version| u32::try_from(version).unwrap_or_default())
}
