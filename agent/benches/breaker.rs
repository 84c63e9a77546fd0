//! What a circuit costs a request: being asked and told, on one hot breaker, by one thread and by as many as there are cores. No lock
//! is taken and no cache line is written that another thread's request reads, so the cost of each stays what it is alone.
//!
//! `cargo bench -p switchyard-agent --bench breaker`. Each figure is the median of rounds; a machine that does other things too
//! shows it in the largest.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use switchyard_agent::admit::breaker::{Answer, Breaker, Millis, Moment, Outcome, Settings};
use switchyard_agent::admit::ejections::Ejections;

const ROUNDS: usize = 15;
const REQUESTS: u64 = 2_000_000;

const SETTINGS: Settings = Settings {
    failure_threshold: 5,
    error_rate_ppm: 500_000,
    minimum_requests: 20,
    window_ms: 10_000,
    timeout_ms: 60_000,
    multiplier_milli: 2000,
    max_timeout_ms: 600_000,
    jitter_ppm: 100_000,
    success_threshold: 2,
    half_open_requests: 1,
    slow_rate_ppm: Some(800_000),
};

/// One request in so many has the second outcome.
struct Load {
    name: &'static str,
    mostly: Outcome,
    now_and_then: (u64, Outcome),
}

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let good = Outcome::Success { slow: false };
    let loads = [
        Load { name: "all good", mostly: good, now_and_then: (u64::MAX, good) },
        Load { name: "1 in 100 fails", mostly: good, now_and_then: (100, Outcome::Failure { slow: false }) },
        Load { name: "1 in 100 is slow", mostly: good, now_and_then: (100, Outcome::Success { slow: true }) },
    ];
    println!("ask and record on one breaker, ns per request and thread (median of {ROUNDS} rounds, least to largest):");
    for load in &loads {
        let mut threads = 1;
        loop {
            let (median, least, largest) = measure(load, threads);
            println!("  {:17} {threads:3} threads  {median:6.1}  ({least:.1} to {largest:.1})", load.name);
            if threads >= cores {
                break;
            }
            threads = (threads * 2).min(cores);
        }
    }
}

fn measure(load: &Load, threads: usize) -> (f64, f64, f64) {
    let breaker = Arc::new(Breaker::new(threads));
    let set = Ejections::default();
    set.set_members(&[(Arc::clone(&breaker), SETTINGS)], 500_000, Millis(0));
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|round| run(&breaker, &set, load, threads, round as u64)).collect();
    rounds.sort_by(f64::total_cmp);
    (rounds[ROUNDS / 2], rounds[0], rounds[ROUNDS - 1])
}

/// One round: every thread sends its requests, a thousand a millisecond; the time of the slowest, per request.
fn run(breaker: &Breaker, set: &Ejections, load: &Load, threads: usize, round: u64) -> f64 {
    let begin = Barrier::new(threads);
    let send = |worker: usize| {
        begin.wait();
        let start = Instant::now();
        for request in 0..REQUESTS {
            let now = Millis((round * REQUESTS + request) / 1000);
            let (Answer::Admit(ticket) | Answer::Probe(ticket)) = breaker.ask(black_box(&SETTINGS), now) else {
                continue;
            };
            let is_other = request % load.now_and_then.0 == load.now_and_then.0 - 1;
            let outcome = if is_other { load.now_and_then.1 } else { load.mostly };
            let moment = Moment { worker, now, random: 0 };
            black_box(breaker.record(&SETTINGS, ticket, outcome, moment, Some(set)));
        }
        start.elapsed()
    };
    let slowest = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn({
                    let send = &send;
                    move || send(worker)
                })
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).max()
    });
    slowest.unwrap_or_default().as_nanos() as f64 / REQUESTS as f64
}
