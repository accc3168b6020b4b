//! What attacker code does that no safe crate offers: any system call with any
//! arguments. The only unsafe code of the tests.
//!
//! Called in forked children only, each of which makes one attack and leaves by
//! `_exit`; what a call does to such a child's memory harms nobody.
#![expect(unsafe_code, reason = "attacks are system calls that Rust does not offer")]

use std::ffi::CString;

use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use postern_core::sys::{descriptors, process};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

/// Makes a system call: its result, or the negative error number.
pub(crate) fn call(number: i64, arguments: &[u64]) -> i64 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    // SAFETY: not safe for every number. The process is a forked child that
    // exists for this call, owns copies of all memory, and ends behind it; the
    // tables pass pointers only to memory of `text` and `room`, which stays.
    let result = unsafe { libc::syscall(number, all[0], all[1], all[2], all[3], all[4], all[5]) };
    if result == -1 { -i64::from(nix::errno::Errno::last_raw()) } else { result }
}

/// Makes a 32-bit system call of i386 without arguments: its result.
#[cfg(target_arch = "x86_64")]
pub(crate) fn call_i386(number: i64) -> i64 {
    let result: i64;
    // SAFETY: as `call`; the kernel's 32-bit entry changes no register but the
    // ones named.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") number => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result
}

/// The address of a C string that stays.
pub(crate) fn text(text: &str) -> u64 {
    CString::new(text).expect("no NUL").into_raw() as u64
}

/// The address of zeroed bytes that stay.
pub(crate) fn room(length: usize) -> u64 {
    Vec::leak(vec![0_u64; length.div_ceil(8)]).as_ptr() as u64
}

/// The address of these values, which stay.
pub(crate) fn words(values: &[u64]) -> u64 {
    Vec::leak(values.to_vec()).as_ptr() as u64
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The call came back with this, as [`call`] has it.
    Back(i64),
    /// It never came back: the process was killed by this signal.
    Killed(i32),
    /// It never came back: the process is another program, which ended so.
    Became(i32),
}

/// Runs `attack` in a child that `prepare` has made ready; `prepare` gets the
/// socket that is to be descriptor 3, as the broker's is.
///
/// # Panics
/// If `prepare` fails.
pub(crate) fn attempt<T>(prepare: impl FnOnce() -> T, attack: impl FnOnce(&T) -> i64) -> End {
    attempt_heard(prepare, attack).0
}

/// As [`attempt`], with all else that was heard on that socket.
pub(crate) fn attempt_heard<T>(prepare: impl FnOnce() -> T, attack: impl FnOnce(&T) -> i64) -> (End, String) {
    /// Nothing of the parent's runs in a child, not even by a panic.
    struct Stay;
    impl Drop for Stay {
        fn drop(&mut self) {
            process::exit_now(99);
        }
    }
    let flags = SockFlag::empty();
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a socketpair");
    // SAFETY: the tests of this target have one thread, so the child may go on
    // with everything; it leaves by _exit.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let _stay = Stay;
            drop(ours);
            // Open for good: an attack may close it.
            let socket = descriptors::move_to(theirs, 3).expect("descriptor 3").into_raw_fd();
            let say = |word: i64| send(socket, &word.to_le_bytes(), MsgFlags::MSG_NOSIGNAL);
            let prepared = prepare();
            let _ = say(READY);
            let result = attack(&prepared);
            let _ = say(result);
            process::exit_now(0)
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut heard = String::new();
            let ready = hear(&ours, &mut heard);
            let result = hear(&ours, &mut heard);
            let ended = waitpid(child, None).expect("the child's end");
            assert_eq!(ready, Some(READY), "not made ready: {ended:?}");
            let end = match (result, ended) {
                (Some(result), _) => End::Back(result),
                (None, WaitStatus::Signaled(_, signal, _)) => End::Killed(signal as i32),
                (None, WaitStatus::Exited(_, status)) => End::Became(status),
                (None, other) => panic!("neither back nor ended: {other:?}"),
            };
            (end, heard)
        }
    }
}

/// What a child says before its attack.
const READY: i64 = i64::MIN;

/// The child's next word; what an attack itself sends is of another length, and
/// goes to `other`.
fn hear(socket: &OwnedFd, other: &mut String) -> Option<i64> {
    let mut word = [0; 4096];
    loop {
        match recv(socket.as_raw_fd(), &mut word, MsgFlags::empty()) {
            Ok(8) => return Some(i64::from_le_bytes(word[..8].try_into().expect("8 bytes"))),
            Ok(0) | Err(_) => return None,
            Ok(length) => other.push_str(&String::from_utf8_lossy(&word[..length])),
        }
    }
}
