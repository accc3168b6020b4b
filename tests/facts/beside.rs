//! postern beside stock on the machine that runs the tests: every command that only
//! reads. Virtual machines: `tests/vm/facts.rs`.

use serde_json::Value;

use crate::agents::{self, Stock};
use crate::intended::{INTENDED, Place};
use crate::support::agent::Home;
use crate::support::runner::Test;
use crate::verdict::{Column, Verdict, compare, explain};
use crate::{client, scene, schema, table};

/// The test that has a column of the table.
pub(crate) const PUBLISHES: &str = "every_fact_is_as_stock_tells_it";

pub(crate) const TESTS: &[Test] = &[
    ("stocks_own_replies_have_their_types", stocks_own_replies_have_their_types),
    ("stock_is_as_stock_tells_it", stock_is_as_stock_tells_it),
    (PUBLISHES, every_fact_is_as_stock_tells_it),
    ("every_intended_difference_is_to_be_seen_somewhere", every_intended_difference_is_to_be_seen_somewhere),
];

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
                Verdict::Equal | Verdict::StockLacks => {}
                Verdict::Intended(_) => unreachable!("stock is as it is"),
                Verdict::Differs(how) => panic!("stock {} {command}:\n{how}", stock.version),
            }
        }
    }
}

fn every_fact_is_as_stock_tells_it() {
    let _scene = scene::set_up();
    let home = Home::new();
    let agent = home.start(&agents::policy(agents::allowed()));
    let mut ours = agent.connect();
    let columns: Vec<Column> = Stock::each(&home)
        .iter()
        .map(|stock| {
            let mut theirs = stock.connect();
            let mut column = Column::new(Place::Cell, &stock.version);
            for command in agents::compared() {
                column.judge(command, &mut theirs, &mut ours);
            }
            column.complete(&mut theirs, &mut ours);
            column
        })
        .collect();
    table::publish(&columns);
}

/// A difference that is seen nowhere is none.
fn every_intended_difference_is_to_be_seen_somewhere() {
    for row in INTENDED {
        assert!(!row.places.is_empty(), "{} {} is seen nowhere", row.command, row.at);
    }
}
