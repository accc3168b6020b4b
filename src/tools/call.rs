//! `postern call`: a host's client for one command.
//!
//! Trust: the command line is a person's. What the agent answers is not
//! trusted, see [`crate::client`].

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use postern_core::catalogue;
use serde_json::{Map, Value};

use crate::client::{Client, Lost, Refusal, harmless};

/// The agent answered with an error.
const REFUSED: u8 = 1;
/// Nobody listens on the socket.
const NO_CONNECTION: u8 = 3;
/// No proper answer, or not in time.
const NO_ANSWER: u8 = 4;

/// `postern call`
#[derive(Debug, clap::Args)]
#[command(
    about = "Send one command to an agent, as a host would",
    after_help = "The channel is synchronised with guest-sync-delimited first. Commands that say nothing on success, such \
        as\nguest-shutdown, succeed when the channel is closed or stays quiet for two seconds.\n\n\
        Exit status: 0 success, 1 error reply, 2 usage, 3 cannot connect, 4 no answer in time or none that is QGA.\n\n\
        Examples:\n  \
        postern call --socket /run/vm/ga.sock guest-info\n  \
        postern call --socket /run/vm/ga.sock guest-file-open '{\"path\": \"/var/log/syslog\", \"mode\": \"r\"}'\n  \
        postern call --socket /run/vm/ga.sock guest-file-read '{\"handle\": 1000}' --raw | jq -r '.return[\"buf-b64\"]'\n  \
        postern call --socket /run/vm/ga.sock guest-fsfreeze-freeze --timeout 600"
)]
pub struct Call {
    /// The agent's unix socket, or the one that the hypervisor has for it
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The command, such as guest-ping
    #[arg(value_name = "COMMAND")]
    command: String,
    /// Its arguments, a JSON object; - reads them from standard input
    #[arg(value_name = "JSON-ARGUMENTS", value_parser = arguments)]
    arguments: Option<String>,
    /// Print the reply line as it came, on stdout or, for an error, on stderr
    #[arg(long)]
    raw: bool,
    /// How long to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
}

/// The text of a JSON object, as it was written.
fn arguments(text: &str) -> Result<String, String> {
    let mut text = text.to_owned();
    if text == "-" {
        text.clear();
        io::stdin().read_to_string(&mut text).map_err(|why| format!("standard input: {why}"))?;
    }
    match serde_json::from_str::<Map<String, Value>>(&text) {
        Ok(_) => Ok(text),
        Err(why) => Err(format!("not a JSON object such as {{\"handle\": 1000}}: {why}")),
    }
}

impl Call {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.ask() {
            Ok(()) => ExitCode::SUCCESS,
            Err(status) => ExitCode::from(status),
        }
    }

    fn ask(&self) -> Result<(), u8> {
        let timeout = Duration::from_secs(self.timeout.into());
        let lost = |lost: Lost| {
            tell(io::stderr(), &format!("postern: {}", harmless(&lost.to_string())));
            if matches!(lost, Lost::Connect { .. }) { NO_CONNECTION } else { NO_ANSWER }
        };
        let mut client = Client::connect(&self.socket, timeout).map_err(lost)?;
        client.sync().map_err(lost)?;
        let silent = catalogue::lookup(&self.command).is_some_and(|entry| entry.silent);
        let arguments = self.arguments.as_deref();
        let reply = if silent {
            client.ask_silent(&self.command, arguments).map_err(lost)?
        } else {
            Some(client.ask(&self.command, arguments).map_err(lost)?)
        };
        let Some(reply) = reply else { return Ok(()) };
        let pretty = |value| harmless(&serde_json::to_string_pretty(value).unwrap_or_default());
        match &reply.outcome {
            Ok(_) if self.raw => print(&reply.line, io::stdout(), io::stdout().is_terminal()),
            Err(_) if self.raw => print(&reply.line, io::stderr(), io::stderr().is_terminal()),
            Ok(value) => tell(io::stdout(), &pretty(value)),
            Err(Refusal { class, text }) => {
                tell(io::stderr(), &harmless(&format!("{class}: {text}")).replace('\n', "\\n"));
            }
        }
        reply.outcome.map(drop).map_err(|_| REFUSED)
    }
}

/// A line as it came; on a terminal nothing of it moves the cursor.
fn print(line: &[u8], out: impl Write, terminal: bool) {
    if terminal {
        return tell(out, &harmless(&String::from_utf8_lossy(line)));
    }
    let mut out = out;
    // Nobody is left to tell if the output is closed.
    _ = out.write_all(line).and_then(|()| out.write_all(b"\n"));
}

fn tell(mut out: impl Write, text: &str) {
    _ = writeln!(out, "{text}");
}
