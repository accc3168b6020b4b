//! Stock's command line, read as getopt reads it: `-vD`, `-p/x`, `-p /x`,
//! `--path=/x`, `--pa /x`, options behind operands, `--`. Pure.
//!
//! Trust: the command line is trusted as much as who may start a process.

/// Where stock's configuration file stands.
pub const CONFIG: &str = "/etc/qemu/qemu-ga.conf";
/// Names another place for it.
pub const CONFIG_VARIABLE: &str = "QGA_CONF";
/// Stock's port.
pub const VIRTIO_PATH: &str = "/dev/virtio-ports/org.qemu.guest_agent.0";
/// Stock's serial line.
pub const SERIAL_PATH: &str = "/dev/ttyS0";
/// Stock's pidfile.
pub const PIDFILE: &str = "/var/run/qemu-ga.pid";

/// What can be set: by an option, and most of it by a key of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `-d`
    Daemon,
    /// `-m`
    Method,
    /// `-p`
    Path,
    /// `-l`
    Logfile,
    /// `-f`
    Pidfile,
    /// `-F`
    FsfreezeHook,
    /// `-t`
    Statedir,
    /// `-v`
    Verbose,
    /// `-r`
    RetryPath,
    /// `-b`
    BlockRpcs,
    /// `-a`
    AllowRpcs,
    /// `-c`
    Config,
    /// `-D`
    DumpConf,
    /// `-V`
    Version,
    /// `-h`
    Help,
    /// `--policy`, which stock does not have.
    Policy,
}

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// None.
    Nothing,
    /// One, here or in the next word.
    Value,
    /// One, here, or this.
    ValueOr(&'static str),
}

/// One thing that can be set.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Which.
    pub name: Name,
    /// Its letter, if it has one.
    pub short: Option<char>,
    /// Its long names, the present one first.
    pub long: &'static [&'static str],
    /// Its value.
    pub takes: Takes,
    /// Its keys in the file, the present one first.
    pub keys: &'static [&'static str],
}

const fn setting(
    name: Name,
    short: char,
    long: &'static [&'static str],
    takes: Takes,
    keys: &'static [&'static str],
) -> Setting {
    Setting { name, short: Some(short), long, takes, keys }
}

/// Everything that can be set.
pub const SETTINGS: [Setting; 16] = [
    setting(Name::Daemon, 'd', &["daemonize"], Takes::Nothing, &["daemon"]),
    setting(Name::Method, 'm', &["method"], Takes::Value, &["method"]),
    setting(Name::Path, 'p', &["path"], Takes::Value, &["path"]),
    setting(Name::Logfile, 'l', &["logfile"], Takes::Value, &["logfile"]),
    setting(Name::Pidfile, 'f', &["pidfile"], Takes::Value, &["pidfile"]),
    setting(Name::FsfreezeHook, 'F', &["fsfreeze-hook"], Takes::ValueOr("/etc/qemu/fsfreeze-hook"), &["fsfreeze-hook"]),
    setting(Name::Statedir, 't', &["statedir"], Takes::Value, &["statedir"]),
    setting(Name::Verbose, 'v', &["verbose"], Takes::Nothing, &["verbose"]),
    setting(Name::RetryPath, 'r', &["retry-path"], Takes::Nothing, &["retry-path"]),
    setting(Name::BlockRpcs, 'b', &["block-rpcs", "blacklist"], Takes::Value, &["block-rpcs", "blacklist"]),
    setting(Name::AllowRpcs, 'a', &["allow-rpcs"], Takes::Value, &["allow-rpcs"]),
    setting(Name::Config, 'c', &["config"], Takes::Value, &[]),
    setting(Name::DumpConf, 'D', &["dump-conf"], Takes::Nothing, &[]),
    setting(Name::Version, 'V', &["version"], Takes::Nothing, &[]),
    setting(Name::Help, 'h', &["help"], Takes::Nothing, &[]),
    Setting { name: Name::Policy, short: None, long: &["policy"], takes: Takes::Value, keys: &[] },
];

/// One option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which.
    pub name: Name,
    /// Its value; empty for one that has none.
    pub value: String,
}

/// A command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The options before the first mistake, in order.
    pub given: Vec<Given>,
    /// What is no option; stock does not look at it.
    pub operands: Vec<String>,
    /// The first mistake, for what stands before it may be `--help`.
    pub mistake: Option<String>,
}

/// Reads the words behind the program's name.
#[must_use]
pub fn read(words: &[String]) -> Line {
    let mut line = Line::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let done = if word == "--" {
            line.operands.extend(words.by_ref().cloned());
            Ok(())
        } else if let Some(word) = word.strip_prefix("--") {
            long(word, &mut words, &mut line.given)
        } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            short(letters, &mut words, &mut line.given)
        } else {
            line.operands.push(word.clone());
            Ok(())
        };
        if let Err(mistake) = done {
            line.mistake = Some(mistake);
            break;
        }
    }
    line
}

fn long<'a>(word: &str, words: &mut impl Iterator<Item = &'a String>, given: &mut Vec<Given>) -> Result<(), String> {
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    let all = || SETTINGS.iter().flat_map(|setting| setting.long.iter().map(move |long| (*long, setting)));
    let exact = all().find(|(long, _)| *long == name);
    let begun: Vec<_> = all().filter(|(long, _)| long.starts_with(name)).collect();
    let (long, setting) = match (exact, begun.as_slice()) {
        (Some(found), _) => found,
        (None, [first, rest @ ..]) if rest.iter().all(|other| other.1.name == first.1.name) => *first,
        (None, []) => return Err(format!("there is no option --{name}")),
        (None, several) => {
            let names: Vec<String> = several.iter().map(|(long, _)| format!("--{long}")).collect();
            return Err(format!("--{name} is short for each of {}", names.join(", ")));
        }
    };
    let value = match (setting.takes, value) {
        (Takes::Nothing, Some(_)) => return Err(format!("--{long} takes no value")),
        (Takes::Nothing, None) => "",
        (_, Some(value)) => value,
        (Takes::ValueOr(default), None) => default,
        (Takes::Value, None) => words.next().ok_or_else(|| format!("--{long} needs a value"))?,
    };
    given.push(Given { name: setting.name, value: value.to_owned() });
    Ok(())
}

fn short<'a>(
    letters: &str,
    words: &mut impl Iterator<Item = &'a String>,
    given: &mut Vec<Given>,
) -> Result<(), String> {
    for (at, letter) in letters.char_indices() {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.short == Some(letter)) else {
            return Err(format!("there is no option -{letter}"));
        };
        let rest = &letters[at + letter.len_utf8()..];
        let value = match setting.takes {
            Takes::Nothing => {
                given.push(Given { name: setting.name, value: String::new() });
                continue;
            }
            _ if !rest.is_empty() => rest,
            Takes::ValueOr(default) => default,
            Takes::Value => words.next().ok_or_else(|| format!("-{letter} needs a value"))?,
        };
        given.push(Given { name: setting.name, value: value.to_owned() });
        break;
    }
    Ok(())
}

/// What `--help` prints.
#[must_use]
pub fn help() -> String {
    format!(
        "Usage: qemu-ga [-m METHOD -p PATH] [OPTIONS]\n\
         postern in the place of the QEMU guest agent: its options, and a policy that they can only narrow\n\n\
         \x20 -m, --method METHOD      virtio-serial (unless the policy says otherwise), isa-serial, unix-listen, vsock-listen\n\
         \x20 -p, --path PATH          the port, line or socket; {VIRTIO_PATH} or {SERIAL_PATH}\n\
         \x20                          unless said; CID:PORT for vsock-listen\n\
         \x20 -l, --logfile PATH       where the operator's log goes, stderr unless said\n\
         \x20 -f, --pidfile PATH       where a daemon's process id stands, {PIDFILE} unless said\n\
         \x20 -F, --fsfreeze-hook[=PATH]  accepted; no script is run\n\
         \x20 -t, --statedir DIR       the state directory is DIR/postern, not the policy's\n\
         \x20 -v, --verbose            say everything\n\
         \x20 -V, --version            print the version\n\
         \x20 -d, --daemonize          go to the background as soon as the agent serves\n\
         \x20 -b, --block-rpcs LIST    commands that the host may not use, separated by commas; help lists all\n\
         \x20     --blacklist LIST     the same\n\
         \x20 -a, --allow-rpcs LIST    the only commands that the host may use, of those that the policy allows\n\
         \x20 -c, --config FILE        the configuration file, {CONFIG} or ${CONFIG_VARIABLE} unless said\n\
         \x20 -D, --dump-conf          print the merged configuration\n\
         \x20 -r, --retry-path         wait for the path to appear\n\
         \x20 -h, --help               print this\n\
         \x20     --policy FILE        the policy, /etc/postern/policy.toml unless said (not in stock)\n\n\
         Exit status: 0 ended in order, 1 anything else.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        read(&text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>())
    }

    fn given(text: &str) -> Vec<(Name, String)> {
        let line = line(text);
        assert_eq!(line.mistake, None, "{text}");
        line.given.into_iter().map(|given| (given.name, given.value)).collect()
    }

    #[test]
    fn each_form_of_an_option_is_the_same() {
        for text in ["-p /x", "-p/x", "--path /x", "--path=/x", "--pa /x", "--pa=/x", "foo -p /x"] {
            assert_eq!(given(text), [(Name::Path, "/x".to_owned())], "{text}");
        }
        assert_eq!(given("-vDp/x"), given("--verbose --dump-conf --path /x"));
        for text in ["-b a,b", "--block-rpcs=a,b", "--blacklist a,b"] {
            assert_eq!(given(text), [(Name::BlockRpcs, "a,b".to_owned())], "{text}");
        }
        assert_eq!(given("--daemon"), given("-d"));
    }

    #[test]
    fn an_optional_value_is_only_taken_from_the_same_word() {
        let default = "/etc/qemu/fsfreeze-hook";
        for (text, value) in
            [("-F", default), ("--fsfreeze-hook", default), ("-F/x", "/x"), ("-F=", "="), ("--fsfreeze-hook=/y", "/y")]
        {
            assert_eq!(given(text), [(Name::FsfreezeHook, value.to_owned())], "{text}");
        }
        assert_eq!(given("-F /x"), [(Name::FsfreezeHook, default.to_owned())]);
        assert_eq!(line("-F /x").operands, ["/x"]);
    }

    #[test]
    fn the_first_mistake_ends_the_line_and_says_what_it_is() {
        for (text, said) in [
            ("-X", "no option -X"),
            ("--unknown", "no option --unknown"),
            ("--ver", "--verbose, --version"),
            ("-m", "-m needs a value"),
            ("--blacklist", "--blacklist needs a value"),
            ("--verbose=1", "--verbose takes no value"),
        ] {
            let line = line(&format!("-h {text}"));
            let mistake = line.mistake.unwrap();
            assert!(mistake.contains(said), "{text}: {mistake}");
            assert_eq!(line.given.len(), 1, "{text}");
        }
        assert_eq!(line("-h -X -v").given.len(), 1);
    }

    #[test]
    fn what_follows_two_dashes_is_no_option() {
        let line = line("-D -- -X - --help");
        assert_eq!((line.given.len(), line.operands.len(), line.mistake), (1, 3, None));
        assert_eq!(read(&["-".to_owned()]).operands, ["-"]);
    }
}
