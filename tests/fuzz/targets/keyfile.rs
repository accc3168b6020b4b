//! Stock's configuration file and command line → one start.
//!
//! Behind a line that is `--` stand the words of a command line, one a line.

use postern_core::catalogue::{Command, CommandSet};
use postern_tools::stock::{Asked, Stock, read};

/// Takes an input.
///
/// # Panics
/// Where the dump of a configuration is another configuration, or a start widens
/// what the policy allows.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // Stock drops a form feed at the beginning of a value and does not escape it.
    if text.contains('\x0c') {
        return drop(ask(&[], text));
    }
    let (file, line) = text.split_once("\n--\n").unwrap_or((text, ""));
    let words: Vec<String> = line.split('\n').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    match ask(&words, file) {
        Ok(Asked::Serve(stock)) => {
            narrows(&stock);
            let mut dumping = words;
            dumping.insert(0, "--dump-conf".to_owned());
            let Ok(Asked::Print(dump)) = ask(&dumping, file) else { panic!("a start that cannot be dumped") };
            let Ok(Asked::Serve(again)) = ask(&[], &dump) else { panic!("{dump}") };
            let Ok(Asked::Print(dumped)) = ask(&["--dump-conf".to_owned()], &dump) else { panic!("{dump}") };
            same(&stock, &again);
            let Ok(Asked::Print(twice)) = ask(&["--dump-conf".to_owned()], &dumped) else { panic!("{dumped}") };
            // Lists stand backwards in a dump, as stock's do.
            assert_eq!(twice, dump);
        }
        Ok(Asked::Print(text)) => assert!(!text.is_empty()),
        Err(why) => assert!(!why.is_empty()),
    }
}

fn ask(words: &[String], file: &str) -> Result<Asked, String> {
    read(words, &|_| None, &|_| Ok(Some(file.to_owned())))
}

fn same(one: &Stock, other: &Stock) {
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort();
        list
    };
    assert_eq!((one.daemon, one.verbose, one.retry_path), (other.daemon, other.verbose, other.retry_path));
    assert_eq!((&one.logfile, &one.fsfreeze_hook), (&other.logfile, &other.fsfreeze_hook));
    assert_eq!(one.pidfile(), other.pidfile());
    assert_eq!(sorted(&one.block_rpcs), sorted(&other.block_rpcs));
    assert_eq!(sorted(&one.allow_rpcs), sorted(&other.allow_rpcs));
}

/// Of every two commands that a policy allows and that it does not.
fn narrows(stock: &Stock) {
    for odd in [0, 1] {
        let allowed: CommandSet = Command::all().filter(|&command| (command as u8) & 1 == odd).collect();
        let (kept, notes) = stock.keep(allowed);
        assert_eq!(kept.bits() & !allowed.bits(), 0, "{notes:?}");
        for name in &stock.block_rpcs {
            assert!(!kept.iter().any(|command| command.name() == name), "{name} was blocked");
        }
    }
}
