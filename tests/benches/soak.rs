//! Ten minutes of load and change, and whether anything grows: `just soak`, or `just soak MINUTES`.
//!
//! It prints every ten seconds what agent and controller take up. At the end it asserts that no caller saw a failure, and that in the last
//! tenth of the time neither has more in memory, or more sockets, than after a third of it, but for the tolerances below. An agent keeps
//! what belongs to names that are gone for ten minutes, so it grows for so long, by [`PER_SECOND_KIB`] at most, and then no more: a run of
//! 30 minutes allows for nothing but [`MORE`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark fails by panicking"
)]

use std::time::Duration;

use switchyard_tests::soak::{Sample, soak};

/// How much more memory there may be: a tenth, and what is kept of names that are gone.
const MORE: f64 = 1.1;
/// What is kept of one second's names: an instance, and a Service with an instance, rule and policies ...
const PER_SECOND_KIB: f64 = 16.0;
/// ... for so many seconds.
const KEPT: f64 = 600.0;
/// How many more sockets there may be: some more for each caller, where the machine was busy and many waited. One that is left over each
/// second is more than that soon.
const MORE_SOCKETS: u64 = 100;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let minutes = std::env::args().filter_map(|arg| arg.parse::<f64>().ok()).next().unwrap_or(10.0);
    let soaked = soak(Duration::from_secs_f64(minutes * 60.0)).await;
    let (early, late) = (0.3..0.4, 0.9..1.0);
    type Of = fn(&Sample) -> u64;
    let memory: [(&str, Of); 2] = [("agent", |s| s.agent.memory_kib), ("controller", |s| s.controller.memory_kib)];
    let sockets: [(&str, Of); 2] = [("agent", |s| s.agent.sockets), ("controller", |s| s.controller.sockets)];
    let both = |of: Of| (soaked.median(early.clone(), of), soaked.median(late.clone(), of));
    let kept = |share: f64| (minutes * 60.0 * share).min(KEPT) * PER_SECOND_KIB;
    for (whose, of) in memory {
        let (before, after) = both(of);
        let most = before as f64 * MORE + kept(1.0) - kept(0.3);
        println!("memory of the {whose}: {before} KiB, later {after} KiB, and {most:.0} KiB may be");
        assert!(after as f64 <= most, "the {whose} grows");
    }
    for (whose, of) in sockets {
        let (before, after) = both(of);
        println!("sockets of the {whose}: {before}, later {after}");
        assert!(after <= before + MORE_SOCKETS, "the {whose} keeps sockets");
    }
    let last = soaked.samples.last().unwrap();
    println!("{} good replies, {} others", last.good, soaked.bad.len());
    assert!(soaked.bad.is_empty(), "the first: {}", soaked.bad[0]);
}
