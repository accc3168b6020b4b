//! postern beside stock on the same machine: every command that only reads, asked of
//! both, typed, and compared.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::agents::{self, Stock};
use crate::compare::{Difference, Unsteady, differences};
use crate::intended::INTENDED;
use crate::support::agent::{Home, Host};
use crate::support::runner::Test;
use crate::{client, scene, schema};

pub(crate) const TESTS: &[Test] = &[
    ("stocks_own_replies_have_their_types", stocks_own_replies_have_their_types),
    ("stock_is_as_stock_tells_it", stock_is_as_stock_tells_it),
    ("every_fact_is_as_stock_tells_it", every_fact_is_as_stock_tells_it),
];

/// How often the two are asked again while the machine changes between two answers.
const ATTEMPTS: usize = 40;

/// The control of the checks, and of the scene: they hold for what they were made of.
fn stocks_own_replies_have_their_types() {
    let _scene = scene::set_up();
    let home = Home::new();
    for stock in Stock::each(&home) {
        let mut host = stock.connect();
        let mut known = 0;
        for command in agents::reading() {
            let reply = host.ask(command, &Value::Null);
            if reply["error"]["class"] == "CommandNotFound" {
                println!("    stock {} has no {command}", stock.version);
                continue;
            }
            let returned = reply.get("return").unwrap_or_else(|| panic!("{command}: {reply}"));
            schema::assert_typed(command, returned);
            client::assert_taken(command, returned);
            known += 1;
        }
        assert!(known >= 13, "stock {} answers {known}", stock.version);
    }
}

/// The control of the comparison: stock does not differ from itself, whatever
/// happens on the machine meanwhile.
fn stock_is_as_stock_tells_it() {
    let _scene = scene::set_up();
    let home = Home::new();
    for (stock, other) in Stock::each(&home).iter().zip(&Stock::each(&home)) {
        let (mut theirs, mut ours) = (stock.connect(), other.connect());
        for command in agents::reading() {
            match compare(command, &mut theirs, &mut ours, &|found| explain(command, "none", found)) {
                Result::Equal | Result::Missing(_) => {}
                Result::Intended(_) => unreachable!("no row is of this version"),
                Result::Differs(how) => panic!("stock {} {command}:\n{how}", stock.version),
            }
        }
    }
}

/// What is in the table.
enum Result {
    Equal,
    Intended(BTreeSet<usize>),
    /// One of the two does not have it.
    Missing(&'static str),
    Differs(String),
}

fn every_fact_is_as_stock_tells_it() {
    let _scene = scene::set_up();
    let home = Home::new();
    let agent = home.start(&agents::policy(agents::offered()));
    let mut ours = agent.connect();
    let mut occurred = BTreeSet::new();
    let mut wrong = Vec::new();
    println!("\n    | command | stock | result |\n    |---|---|---|");
    for stock in Stock::each(&home) {
        let mut theirs = stock.connect();
        for command in agents::reading() {
            assert!(agents::offered().any(|offered| offered == command), "postern does not offer {command}");
            let explain: Explain<'_> = &|found| explain(command, &stock.version, found);
            let result = compare(command, &mut theirs, &mut ours, explain);
            let shown = match result {
                Result::Equal => "equal".to_owned(),
                Result::Intended(rows) => {
                    let why: BTreeSet<&str> = rows.iter().map(|row| INTENDED[*row].why).collect();
                    occurred.extend(rows.iter().map(|row| (*row, stock.version.clone())));
                    format!("intended difference: {}", Vec::from_iter(why).join("; "))
                }
                Result::Missing(why) => format!("missing: {why}"),
                Result::Differs(how) => {
                    wrong.push(format!("stock {} {command}:\n{how}", stock.version));
                    "DIFFERS".to_owned()
                }
            };
            println!("    | {command} | {} | {shown} |", stock.version);
        }
        for (row, intended) in INTENDED.iter().enumerate() {
            let due = intended.of.iter().any(|version| stock.version.starts_with(version));
            if !due || occurred.contains(&(row, stock.version.clone())) {
                continue;
            }
            if let Some(needs) = intended.needs {
                println!("    not seen, which needs {needs}: {} {}", intended.command, intended.at);
            } else {
                wrong.push(format!("stock {}: {} did not differ at {}", stock.version, intended.command, intended.at));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The rows of [`INTENDED`] that all these differences are, or those that are none.
type Explain<'a> = &'a dyn Fn(&[Difference]) -> std::result::Result<BTreeSet<usize>, String>;

fn compare(command: &str, theirs: &mut Host, ours: &mut Host, explain: Explain<'_>) -> Result {
    let mut how = String::new();
    for attempt in 0..ATTEMPTS {
        sleep(Duration::from_millis(if attempt == 0 { 0 } else { 20 }));
        let [before, other, after] = {
            let before = theirs.ask(command, &Value::Null);
            let other = ours.ask(command, &Value::Null);
            [before, other, theirs.ask(command, &Value::Null)]
        };
        if let Some(returned) = other.get("return") {
            schema::assert_typed(command, returned);
            client::assert_taken(command, returned);
        }
        if before["error"]["class"] == "CommandNotFound" {
            return Result::Missing("stock of this version does not have it");
        }
        if other.get("return").is_none() && attempt > 2 {
            return Result::Differs(format!("    {other}\n"));
        }
        match differences(&before, &other, &after) {
            Ok(found) => match explain(&found) {
                Ok(rows) if rows.is_empty() => return Result::Equal,
                Ok(rows) => return Result::Intended(rows),
                Err(unexplained) => how = unexplained,
            },
            Err(Unsteady(what)) => how = format!("stock does not stand still: {what}"),
        }
    }
    Result::Differs(how)
}

/// See [`Explain`].
fn explain(command: &str, version: &str, found: &[Difference]) -> std::result::Result<BTreeSet<usize>, String> {
    let mut rows = BTreeSet::new();
    let mut unexplained = String::new();
    for one in found {
        let row = INTENDED.iter().position(|row| {
            row.command == command
                && format!(".return{}", row.at) == one.at
                && row.of.iter().any(|of| version.starts_with(of))
                && (row.is)(one.stock.as_ref(), one.other.as_ref())
        });
        let shown = |value: &Option<Value>| value.as_ref().map_or("nothing".to_owned(), Value::to_string);
        let line = || {
            let (stock, other) = (shown(&one.stock), shown(&one.other));
            format!("    {} of {}: stock {stock}, postern {other}\n", one.at, one.element)
        };
        match row {
            Some(row) => _ = rows.insert(row),
            None => unexplained += &line(),
        }
    }
    if unexplained.is_empty() { Ok(rows) } else { Err(unexplained) }
}
