//! What a soak counts, and what it compares at its end.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::support::agent::Agent;
use crate::support::usage::Usage;

/// What each process has, by name.
pub(crate) type Standings = BTreeMap<String, Usage>;

/// What memory may differ by, in KiB: a heap grows in steps of 132 KiB, and what
/// is resident depends on what was last touched. A leak adds up to more in half a
/// million requests, in a short run if it is of some hundred bytes a request.
const SLACK: u64 = 768;
/// The same of a worker's private memory: the C library keeps up to twice its
/// largest buffer of late at the top of its heap, untouched or not, and those of
/// this policy are of 2 MiB.
const RESERVE: u64 = 4352;

/// Comparing two moments.
pub(crate) struct Standing;

impl Standing {
    /// What the agent's processes have now.
    pub(crate) fn of(agent: &Agent<'_>) -> Standings {
        let family = agent.family();
        ["broker", "opener", "spawner", "worker"]
            .into_iter()
            .map(|name| (name.to_owned(), Usage::of(family[name])))
            .collect()
    }

    /// Panics if one of these has more than it had.
    pub(crate) fn is_back(before: &Standings, after: &Standings, names: &[&str]) {
        for name in names {
            let (before, after) = (before[*name], after[*name]);
            assert_eq!(before.descriptors, after.descriptors, "descriptors of the {name}");
            for (what, before, after, slack) in [
                ("private memory", before.data, after.data, if *name == "worker" { RESERVE } else { SLACK }),
                ("resident memory", before.resident, after.resident, SLACK),
                ("share of memory", before.share, after.share, SLACK),
            ] {
                assert!(after <= before + slack, "{what} of the {name}: {before} KiB, then {after} KiB");
            }
        }
    }
}

/// A table of several moments.
pub(crate) fn print(moments: &[(&str, &Standings)]) {
    for (moment, all) in moments {
        for (name, usage) in *all {
            println!("    {moment}: {name}: {usage}");
        }
    }
}

/// What happened.
#[derive(Debug)]
pub(crate) struct Tally {
    started: Instant,
    /// Requests answered in each second.
    seconds: Vec<u64>,
    pub(crate) requests: u64,
    /// Successes by command, errors by kind, and events.
    pub(crate) kinds: BTreeMap<&'static str, u64>,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// Replies that nobody expected: the first few.
    pub(crate) unexpected: Vec<String>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            seconds: Vec::new(),
            requests: 0,
            kinds: BTreeMap::new(),
            errors: BTreeMap::new(),
            events: BTreeMap::new(),
            unexpected: Vec::new(),
        }
    }

    /// So many requests were answered just now.
    pub(crate) fn count(&mut self, requests: u64) {
        self.requests += requests;
        let second = usize::try_from(self.started.elapsed().as_secs()).unwrap_or(usize::MAX);
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += requests;
    }

    pub(crate) fn event(&mut self, name: &'static str) {
        *self.events.entry(name).or_default() += 1;
    }

    pub(crate) fn wonder(&mut self, reply: String) {
        assert!(self.unexpected.len() < 20, "too many surprises: {:#?}", self.unexpected);
        self.unexpected.push(reply);
    }

    /// Prints it.
    pub(crate) fn report(&self, wanted: u64) {
        let errors: u64 = self.errors.values().sum();
        let took = self.started.elapsed().as_secs_f64();
        println!("    {} of {wanted} requests in {took:.0} s, {errors} of them errors", self.requests);
        println!("    replies: {:?}", self.kinds);
        println!("    errors by kind, all expected: {:?}", self.errors);
        println!("    events: {:?}", self.events);
        // The second that is under way is not a whole one.
        let whole = &self.seconds[..self.seconds.len() - 1];
        let minute = whole.len().min(60);
        if minute > 0 {
            let mean = |part: &[u64]| part.iter().sum::<u64>() / part.len() as u64;
            let (first, last) = (mean(&whole[..minute]), mean(&whole[whole.len() - minute..]));
            println!("    requests per second: {first} in the first {minute} s, {last} in the last {minute} s");
        }
    }
}
