//! Started in stock's place: what its command line asks for, made of a policy
//! that it can only narrow.
//!
//! Trust: see `postern_tools::stock`. Exit statuses are stock's: 0 and 1.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use postern_broker::say::Level;
use postern_broker::{Options, Pace, Service};
use postern_core::catalogue::Command;
use postern_core::policy::written::Origin;
use postern_core::policy::{Channel, Narrowing, Policy};
use postern_core::sys::process;
use postern_tools::stock::{self, Asked, Stock};

/// Below a state directory that stock shares with others, ours has its own.
const STATE_NAME: &str = "postern";

/// Does what `words` ask for, the program's name left out.
pub(crate) fn run(words: &[OsString]) -> ExitCode {
    let failed = |why: String| {
        eprintln!("postern: {why}");
        ExitCode::FAILURE
    };
    let Some(words) = words.iter().map(|word| word.to_str().map(str::to_owned)).collect::<Option<Vec<_>>>() else {
        return failed("the command line is not UTF-8".to_owned());
    };
    let variable = |name: &str| std::env::var(name).ok();
    let stock = match stock::read(&words, &variable, &stock::read_file) {
        Ok(Asked::Serve(stock)) => *stock,
        Ok(Asked::Print(text)) => {
            let printed = std::io::stdout().write_all(text.as_bytes());
            return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Err(why) => return failed(why),
    };
    let Some((policy, origin)) = crate::policy(stock.policy.as_deref().map(Path::new)) else {
        return ExitCode::FAILURE;
    };
    match options(&stock, policy, origin) {
        Ok(options) => process::exit_now(i32::from(crate::serve(options) != 0)),
        Err(why) => failed(why),
    }
}

/// Narrows the policy, and finds each thing its place.
fn options(stock: &Stock, mut policy: Policy, origin: Option<Origin>) -> Result<Options, String> {
    let mut notes = stock.all_notes();
    let (_, more) = stock.keep(policy.commands);
    notes.extend(more);
    // For any policy, as a reload may bring another.
    let (keep, _) = stock.keep(Command::all().collect());
    let state = stock.statedir.as_ref().map(|directory| Path::new(directory).join(STATE_NAME));
    let narrowing = Narrowing { keep: Some(keep), state };
    let lost: Vec<&str> = narrowing.apply(&mut policy)?.iter().map(Command::name).collect();
    if !lost.is_empty() {
        notes.push(format!("without guest-fsfreeze-thaw these go too: {}", lost.join(", ")));
    }
    // A socket that a service manager passed comes before what is written, as
    // with stock.
    let channel = stock.channel().filter(|_| !activated()).map(|text| Channel::from_text(&text)).transpose()?;
    let absolute = |path: &str| std::path::absolute(path).map_err(|why| format!("path '{path}': {why}"));
    let service = Service {
        daemon: stock.pidfile().map(absolute).transpose()?,
        logfile: stock.logfile.as_deref().map(absolute).transpose()?,
        waits: stock.retry_path,
        notes,
    };
    let verbosity = if stock.verbose { Level::Info } else { Level::Warning };
    let origin = origin.map(|origin| Origin { narrowing, ..origin });
    Ok(Options { policy, origin, channel, verbosity, service, pace: Pace::Slowed })
}

/// Whether a service manager passed this process a socket to meet the host on,
/// `sd_listen_fds(3)`, and not only that of `postern-netlink.socket`.
fn activated() -> bool {
    let set = |name, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    set("LISTEN_PID", &std::process::id().to_string()) && !set("LISTEN_FDS", "0") && !set("LISTEN_FDNAMES", "netlink")
}
