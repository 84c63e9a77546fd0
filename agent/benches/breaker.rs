//! What a circuit costs a request: being asked and told, by one thread and by as many as there are cores. They use one hot breaker, and
//! beside that a breaker each: what the first costs above the second is what threads cost one another. No lock is taken and no cache line
//! is written that another thread's request reads, so it should be nothing, however many there are.
//!
//! `cargo bench -p switchyard-agent --bench breaker`. Each figure is CPU time per request, the median of rounds that alternate, so that
//! neither other work of the machine nor two threads that share a core make the comparison a different one.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::{Arc, Barrier};

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
    println!("ask and record, ns of CPU per request (median of {ROUNDS} rounds):   one breaker   one each   ratio");
    for load in &loads {
        let mut threads = 1;
        loop {
            let (shared, own) = measure(load, threads);
            let ratio = shared / own;
            println!("  {:17} {threads:3} threads  {shared:38.1} {own:10.1} {ratio:7.2}", load.name);
            if threads >= cores {
                break;
            }
            threads = (threads * 2).min(cores);
        }
    }
}

/// On one breaker, and on one each.
fn measure(load: &Load, threads: usize) -> (f64, f64) {
    let breakers: Vec<Arc<Breaker>> = (0..=threads).map(|_| Arc::new(Breaker::new(threads))).collect();
    let set = Ejections::default();
    let members: Vec<_> = breakers.iter().map(|breaker| (Arc::clone(breaker), SETTINGS)).collect();
    set.set_members(&members, 500_000, Millis(0));
    let (mut shared, mut own) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS as u64 {
        shared.push(run(|_| &breakers[threads], &set, load, threads, round));
        own.push(run(|worker| &breakers[worker], &set, load, threads, round));
    }
    (median(shared), median(own))
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// One round: every thread sends its requests, a thousand a millisecond; the CPU time of the slowest, per request.
fn run<'a>(
    breaker: impl Fn(usize) -> &'a Breaker + Sync,
    set: &Ejections,
    load: &Load,
    threads: usize,
    round: u64,
) -> f64 {
    let begin = Barrier::new(threads);
    let send = |worker: usize| {
        let breaker = breaker(worker);
        begin.wait();
        let start = cpu_time();
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
        cpu_time() - start
    };
    let slowest = std::thread::scope(|scope| {
        let send = &send;
        let all: Vec<_> = (0..threads).map(|worker| scope.spawn(move || send(worker))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).max()
    });
    slowest.unwrap_or_default() as f64 / REQUESTS as f64
}

/// How long this thread has been on a core, in nanoseconds.
fn cpu_time() -> u64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    schedstat.split_whitespace().next().unwrap().parse().unwrap()
}
