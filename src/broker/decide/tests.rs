//! Every ask in every state under policies that grant and withhold.

mod cases;

use postern_core::messages::Standing;

use super::*;
use cases::{HANDLES, USUAL, act_of, acts, asks, each_case, everything, open, policy, standing};
#[test]
fn before_it_is_confined_a_worker_only_introduces_itself() {
    each_case(|state, ask, _, decision| {
        let fetched = matches!(ask, Ask::Port {} | Ask::NoPort { .. });
        let first = match ask {
            // Not without the port that it was sent for.
            Ask::Ready { .. } => !state.fetching || state.ready,
            Ask::Unconfined { .. } => true,
            _ => fetched && (state.fetching || state.ready),
        };
        let last = matches!(ask, Ask::Panicked { .. });
        match (state.ready, first || last) {
            (false, true) => assert_eq!(decision, Decision::Note, "{state:?} {ask:?}"),
            (false, false) => assert!(matches!(decision, Decision::Hostile(_)), "{state:?} {ask:?}: {decision:?}"),
            (true, _) if first => assert!(matches!(decision, Decision::Hostile(_)), "{state:?} {ask:?}: {decision:?}"),
            (true, _) => {}
        }
    });
}

#[test]
fn a_first_word_tells_of_barriers() {
    let unready = State { ready: false, ..USUAL };
    for (landlock_abi, filter_rules, due) in [(0, 30, false), (7, 0, false), (0, 0, false), (1, 1, true)] {
        let ask = Ask::Ready { standing: Standing { landlock_abi, filter_rules, ..standing() } };
        let decision = decide(unready, &ask, &everything());
        assert_eq!(decision == Decision::Note, due, "{ask:?}: {decision:?}");
        assert!(due || matches!(decision, Decision::Hostile(_)), "{ask:?}: {decision:?}");
    }
}

/// What only reports has no effect, whatever the state.
#[test]
fn reports_are_noted() {
    each_case(|state, ask, _, decision| {
        let report = matches!(
            ask,
            Ask::Closed { .. }
                | Ask::HostGone {}
                | Ask::Denied { .. }
                | Ask::Counted { .. }
                | Ask::Limited { .. }
                | Ask::Panicked { .. }
        );
        if report && state.ready {
            assert_eq!(decision, Decision::Note, "{state:?} {ask:?}");
        }
    });
}

#[test]
fn an_effect_takes_policy_and_state() {
    let mut effects = [0; 7];
    each_case(|state, ask, policy, decision| {
        let says = |command| policy.commands.contains(command);
        let (number, allowed) = match &decision {
            Decision::Open { .. } => {
                (0, says(Command::FileOpen) && state.files < HANDLES as usize && state.freeze == Status::Thawed)
            }
            Decision::Freeze(_) => {
                let plain = matches!(ask, Ask::Freeze { only: None }) && says(Command::FsfreezeFreeze);
                let may = plain || says(Command::FsfreezeFreezeList);
                let quiet = state.freeze == Status::Thawed && !state.thawing && !state.acting;
                (1, may && state.privileged && !state.stopping && quiet)
            }
            Decision::Thaw => (2, says(Command::FsfreezeThaw) && state.privileged && !state.thawing),
            Decision::Shutdown(mode) => {
                let may = says(Command::Shutdown) && policy.shutdown.modes.contains(mode);
                (3, may && state.privileged && state.freeze == Status::Thawed)
            }
            Decision::Status => (4, says(Command::FsfreezeStatus)),
            Decision::Fact(fact) => (5, policy.facts().contains(*fact) && state.freeze == Status::Thawed),
            Decision::Act(command) => {
                let quiet = state.freeze == Status::Thawed && !state.thawing && !state.acting;
                let its = act_of(ask) == Some(*command) && says(*command);
                (6, its && state.privileged && !state.stopping && quiet)
            }
            Decision::RefuseOpen(_)
            | Decision::RefuseFact(_)
            | Decision::Refuse(_)
            | Decision::Note
            | Decision::Hostile(_) => return,
        };
        effects[number] += 1;
        assert!(allowed && state.ready && !state.opening, "{state:?} {ask:?}: {decision:?}");
    });
    assert!(effects.iter().all(|count| *count > 0), "the control: each effect is allowed somewhere: {effects:?}");
}

/// The worker has the policy's part: it asks for what is withheld only if it is
/// somebody else's.
#[test]
fn what_the_policy_withholds_is_hostile() {
    each_case(|state, ask, policy, decision| {
        let says = |command| policy.commands.contains(command);
        let granted = match ask {
            Ask::Open { .. } => says(Command::FileOpen),
            Ask::Freeze { only: Some(_) } => says(Command::FsfreezeFreezeList),
            Ask::Freeze { only: None } => says(Command::FsfreezeFreeze) || says(Command::FsfreezeFreezeList),
            Ask::Thaw {} => says(Command::FsfreezeThaw),
            Ask::Status {} => says(Command::FsfreezeStatus),
            Ask::Fact { fact } => policy.facts().contains(*fact),
            Ask::Shutdown { .. } => says(Command::Shutdown),
            _ => match act_of(ask) {
                Some(command) => says(command),
                None => return,
            },
        };
        if !granted {
            assert!(matches!(decision, Decision::Hostile(_)), "{state:?} {ask:?}: {decision:?}");
        } else if state.ready && !state.opening {
            assert!(!matches!(decision, Decision::Hostile(_)), "{state:?} {ask:?}: {decision:?}");
        }
    });
}

/// A sound worker waits for its answer.
#[test]
fn a_second_ask_before_the_answer_is_hostile() {
    each_case(|state, ask, _, decision| {
        let asks = matches!(
            ask,
            Ask::Open { .. }
                | Ask::Freeze { .. }
                | Ask::Thaw {}
                | Ask::Status {}
                | Ask::Shutdown { .. }
                | Ask::Fact { .. }
        ) || act_of(ask).is_some();
        if asks && state.opening {
            assert!(matches!(decision, Decision::Hostile(_)), "{state:?} {ask:?}: {decision:?}");
        }
    });
}

/// In the usual state, under a policy that grants everything: row by row.
#[test]
fn each_ask_gets_its_due() {
    use Decision::{Freeze, Note, Thaw};
    let policy = everything();
    let due = |ask: &Ask| decide(USUAL, ask, &policy);
    let rows = asks();
    for ask in &rows {
        let right = match ask {
            Ask::Ready { .. } | Ask::Unconfined { .. } | Ask::Port {} | Ask::NoPort { .. } => {
                matches!(due(ask), Decision::Hostile(_))
            }
            Ask::Panicked { .. }
            | Ask::Closed { .. }
            | Ask::HostGone {}
            | Ask::PortGone {}
            | Ask::Denied { .. }
            | Ask::Counted { .. }
            | Ask::Limited { .. }
            | Ask::Alive {} => due(ask) == Note,
            Ask::Freeze { only: None } => due(ask) == Freeze(Command::FsfreezeFreeze),
            Ask::Freeze { only: Some(_) } => due(ask) == Freeze(Command::FsfreezeFreezeList),
            Ask::Thaw {} => due(ask) == Thaw,
            Ask::Status {} => due(ask) == Decision::Status,
            Ask::Fact { fact } => due(ask) == Decision::Fact(*fact),
            Ask::Shutdown { mode } => due(ask) == Decision::Shutdown(*mode),
            Ask::Trim { .. } | Ask::Suspend { .. } | Ask::SetVcpus { .. } | Ask::SetMemoryBlocks { .. } => {
                act_of(ask).is_some_and(|command| due(ask) == Decision::Act(command))
            }
            Ask::Open { .. } => matches!(due(ask), Decision::Open { .. } | Decision::RefuseOpen(_)),
        };
        assert!(right, "{ask:?}: {:?}", due(ask));
    }
}

#[test]
fn each_state_refuses_as_it_should() {
    let halting = policy(&[Command::Shutdown], &[ShutdownMode::Halt]);
    let policy = everything();
    let frozen = State { freeze: Status::Frozen, ..USUAL };
    let plain = State { privileged: false, ..USUAL };
    let thawing = State { thawing: true, ..USUAL };
    let refused = |state, ask: &Ask, why| assert_eq!(decide(state, ask, &policy), Decision::Refuse(why), "{ask:?}");
    for ask in [Ask::Freeze { only: None }, Ask::Thaw {}, Ask::Shutdown { mode: ShutdownMode::Halt }] {
        refused(plain, &ask, UNPRIVILEGED);
    }
    refused(frozen, &Ask::Freeze { only: None }, BUSY);
    refused(thawing, &Ask::Freeze { only: None }, BUSY);
    refused(thawing, &Ask::Thaw {}, BUSY);
    for state in [Status::Freezing, Status::Frozen, Status::Error] {
        let state = State { freeze: state, ..USUAL };
        refused(state, &Ask::Shutdown { mode: ShutdownMode::Halt }, "filesystems are frozen");
        assert_eq!(decide(state, &Ask::Thaw {}, &policy), Decision::Thaw, "{state:?}");
    }
    let acting = State { acting: true, ..USUAL };
    let stopping = State { stopping: true, ..USUAL };
    refused(acting, &Ask::Freeze { only: None }, ACTING);
    for (ask, _) in acts() {
        refused(plain, &ask, UNPRIVILEGED);
        refused(stopping, &ask, STOPPING);
        refused(thawing, &ask, FROZEN);
        refused(acting, &ask, ACTING);
        for freeze in [Status::Freezing, Status::Frozen, Status::Error] {
            refused(State { freeze, ..USUAL }, &ask, FROZEN);
        }
    }
    // What thaws, ends the guest or only asks does not wait for an act.
    assert_eq!(decide(acting, &Ask::Thaw {}, &policy), Decision::Thaw);
    assert_eq!(decide(acting, &Ask::Status {}, &policy), Decision::Status);
    let halt = Ask::Shutdown { mode: ShutdownMode::Halt };
    assert_eq!(decide(acting, &halt, &policy), Decision::Shutdown(ShutdownMode::Halt));
    let reboot = decide(USUAL, &Ask::Shutdown { mode: ShutdownMode::Reboot }, &halting);
    assert_eq!(reboot, Decision::Refuse("the guest's policy does not allow this mode"));
}

/// Path and mode against the rules; the rules themselves have their own tests.
#[test]
fn each_open_meets_its_rule() {
    let policy = everything();
    let on = |rule, changes| Decision::Open { rule, changes };
    let no = |errno, why, rule| Decision::RefuseOpen(Refusal { errno, by: Barrier::Broker, why, rule, resolved: None });
    let lacks = |rule| no(Errno::EACCES, "no rule grants this mode here", Some(rule));
    let unreached = no(Errno::EACCES, "no rule reaches the path", None);
    let odd = no(Errno::EACCES, "the path is not absolute and plain", None);
    let rows = [
        ("/read/a", Mode::Read, on(0, false)),
        ("/read/a", Mode::Write, lacks(0)),
        ("/read/a", Mode::Append, lacks(0)),
        ("/read/a", Mode::ReadPlus, lacks(0)),
        ("/read/except", Mode::Read, no(Errno::EACCES, "a rule excepts the path", Some(0))),
        ("/read/except/a", Mode::Read, no(Errno::EACCES, "a rule excepts the path", Some(0))),
        ("/read/exceptional", Mode::Read, on(0, false)),
        ("/write/a", Mode::Read, on(1, false)),
        ("/write/a", Mode::ReadPlus, on(1, false)),
        // Truncates: recorded first.
        ("/write/a", Mode::Write, on(1, true)),
        ("/write/a", Mode::WritePlus, on(1, true)),
        // May make a file, here or, behind a link, beneath /create: recorded
        // first.
        ("/write/a", Mode::Append, on(1, true)),
        ("/create/a", Mode::Write, on(2, true)),
        ("/create/a", Mode::Append, on(2, true)),
        ("/create/a", Mode::Read, lacks(2)),
        ("/append/a", Mode::Append, on(3, true)),
        ("/append/a", Mode::Write, lacks(3)),
        ("/append/a", Mode::ReadPlus, lacks(3)),
        ("/etc/passwd", Mode::Read, unreached.clone()),
        ("/readable", Mode::Read, unreached.clone()),
        ("/", Mode::Read, unreached),
        ("relative", Mode::Read, odd.clone()),
        ("", Mode::Read, odd.clone()),
        ("/read/../etc/passwd", Mode::Read, odd.clone()),
        ("/read/./a", Mode::Read, odd.clone()),
        ("/read//a", Mode::Read, odd),
    ];
    for (path, mode, due) in rows {
        assert_eq!(decide(USUAL, &open(path, mode), &policy), due, "{path} {mode:?}");
    }
    let mut nowhere = everything();
    nowhere.files.remove(2);
    for (path, rule) in [("/write/a", 1), ("/append/a", 2)] {
        assert_eq!(decide(USUAL, &open(path, Mode::Append), &nowhere), on(rule, false), "{path}: no rule creates");
    }
    let full = State { files: HANDLES as usize, ..USUAL };
    let limit = no(Errno::EMFILE, "as many files are open as the policy allows", None);
    assert_eq!(decide(full, &open("/read/a", Mode::Read), &policy), limit);
    for freeze in [Status::Freezing, Status::Frozen, Status::Error] {
        let frozen = State { freeze, ..USUAL };
        let busy = no(Errno::EBUSY, "filesystems are frozen", None);
        assert_eq!(decide(frozen, &open("/read/a", Mode::Read), &policy), busy, "{freeze:?}");
    }
}
