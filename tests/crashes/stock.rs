//! The stock agent killed at rest and while frozen, beside postern's rows: one
//! process, which nobody but a service manager starts again.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Host, eventually};
use crate::support::disk::Disk;
use crate::support::runner::Test;
use crate::table;

pub(crate) const TESTS: &[Test] = &[("stock_that_is_killed_is_gone", stock_that_is_killed_is_gone)];

const SOCKET: &str = "/tmp/stock.sock";
const STATE: &str = "/tmp/stock";

/// Ends with its test.
struct Stock(Child);

impl Stock {
    fn start() -> Self {
        let mut command = Command::new("/bin/qemu-ga");
        command.env("QGA_CONF", "/nowhere").args(["-m", "unix-listen", "-p", SOCKET, "-t", STATE]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("qemu-ga"))
    }

    fn kill(mut self) {
        self.0.kill().expect("SIGKILL");
        self.0.wait().expect("its end");
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stock_that_is_killed_is_gone() {
    fs::create_dir(STATE).expect("a directory");
    fs::write("/tmp/file", "content").expect("a file");
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    for frozen in [false, true] {
        let stock = Stock::start();
        let mut host = Host::connect(Path::new(SOCKET));
        host.ping();
        let handle = host.open("/tmp/file", "r").expect("a handle");
        if frozen {
            assert_eq!(host.returns("guest-fsfreeze-freeze", &Value::Null), 1);
        }
        let struck = Instant::now();
        stock.kill();
        assert!(host.try_ask(&json!({ "execute": "guest-ping" })).is_none(), "the channel ends with it");
        assert_eq!(mounted.is_frozen(), frozen);
        // What a service manager does at once, if there is one.
        let _ = fs::remove_file(SOCKET);
        let _stock = Stock::start();
        let mut host = eventually("it listens", || {
            let host = std::os::unix::net::UnixStream::connect(SOCKET).ok()?;
            Some(Host::over(host))
        });
        host.ping();
        let back = struck.elapsed();
        let outcome = "gone, and its channel with it, until a service manager starts it; time if that is at once";
        table::row("stock, SIGKILL", "at rest", frozen, back, outcome);
        if frozen {
            assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "frozen", "by its state file");
            std::thread::sleep(Duration::from_secs(3));
            assert!(mounted.is_frozen(), "it has no limit");
            println!(
                "    | stock, SIGKILL | at rest | frozen | 1 | - | - | no limit thaws: frozen until a host thaws |"
            );
            assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), 1);
        } else {
            let why = host.fails("guest-file-read", &json!({ "handle": handle }));
            assert_eq!(why, format!("handle '{handle}' has not been found"));
        }
        assert!(!mounted.is_frozen());
    }
}
