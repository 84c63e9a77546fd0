//! Callers that come at random, nodes that each have a limit, and one service that works on so many requests at a time, first come first
//! served; in virtual time. A run is made of its seed alone, which it says: `SWITCHYARD_SIMULATION_SEED=S` for another one. Where work varies by
//! chance, some in a hundred are out of the bounds for as long as until the next measurement.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::admit::adaptive::{Adaptive, Settings};
use crate::admit::window::Millis;
use crate::runtime::Told;

const SETTINGS: Settings = Settings { least: 5, tolerance_ppm: 500_000 };
const MOST: u32 = 1000;
/// The tolerance, and what buckets and chance add to it.
const TOLERATED: f64 = 1.5 * 1.15;

/// What is counted of a while.
#[derive(Debug, Default)]
struct Tally {
    good: u64,
    refused: u64,
    latencies: Vec<u64>,
}

impl Tally {
    fn p50(&mut self) -> f64 {
        self.latencies.sort_unstable();
        self.latencies[self.latencies.len() / 2] as f64
    }
}

struct Node {
    adaptive: Adaptive,
    under_way: u32,
}

/// How long the service works on a request.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// As long on each.
    Steady,
    /// At random, exponentially distributed.
    Varied,
}

/// All times in microseconds.
struct World {
    now: u64,
    nodes: Vec<Node>,
    /// When each of the service's places is free.
    places: BinaryHeap<Reverse<u64>>,
    takes: f64,
    work: Work,
    /// Requests a second of all nodes together.
    per_second: f64,
    next: u64,
    ends: BinaryHeap<Reverse<(u64, usize, u64)>>,
    rng: SmallRng,
}

impl World {
    fn new(nodes: usize, places: usize, takes_ms: f64, work: Work) -> Self {
        let seed = std::env::var("SWITCHYARD_SIMULATION_SEED").map_or(1, |seed| seed.parse().unwrap());
        println!("SWITCHYARD_SIMULATION_SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let since_1970 = rng.random_range(0..1 << 40);
        let node = |_| Node { adaptive: Adaptive::new(1, SETTINGS, Millis(0), since_1970), under_way: 0 };
        let places = (0..places).map(|_| Reverse(0)).collect();
        let (nodes, ends) = ((0..nodes).map(node).collect(), BinaryHeap::new());
        Self { now: 0, nodes, places, takes: takes_ms * 1000.0, work, per_second: 0.0, next: 0, ends, rng }
    }

    /// So many requests a second, as a multiple of what the service can do.
    fn load(&mut self, share: f64) {
        self.per_second = share * self.places.len() as f64 * 1e6 / self.takes;
    }

    fn capacity(&self, seconds: u64) -> f64 {
        self.places.len() as f64 * 1e6 / self.takes * seconds as f64
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-mean * (1.0 - self.rng.random::<f64>()).ln()) as u64
    }

    fn run(&mut self, seconds: u64) -> Tally {
        let until = self.now + seconds * 1_000_000;
        let mut tally = Tally::default();
        self.next = self.next.max(self.now);
        loop {
            let ends = self.ends.peek().map_or(u64::MAX, |Reverse((time, ..))| *time);
            self.now = ends.min(self.next);
            if self.now >= until {
                self.now = until;
                return tally;
            }
            if ends <= self.next {
                self.ends(&mut tally);
            } else {
                self.arrives(&mut tally);
            }
        }
    }

    fn arrives(&mut self, tally: &mut Tally) {
        self.next = self.now + self.exponential(1e6 / self.per_second).max(1);
        let node = self.rng.random_range(0..self.nodes.len());
        let Node { adaptive, under_way } = &mut self.nodes[node];
        let limit = adaptive.limit();
        adaptive.are_under_way(*under_way + 1, limit);
        if *under_way >= limit {
            tally.refused += 1;
            return;
        }
        *under_way += 1;
        let works = match self.work {
            Work::Steady => self.takes as u64,
            Work::Varied => self.exponential(self.takes),
        };
        let Some(Reverse(free)) = self.places.pop() else { panic!("no places") };
        let ends = free.max(self.now) + works;
        self.places.push(Reverse(ends));
        self.ends.push(Reverse((ends, node, self.now)));
    }

    fn ends(&mut self, tally: &mut Tally) {
        let Some(Reverse((_, node, since))) = self.ends.pop() else { return };
        let node = &mut self.nodes[node];
        node.under_way -= 1;
        let took = self.now - since;
        node.adaptive.tell(0, Told::Good(Duration::from_micros(took)), Millis(self.now / 1000), SETTINGS, MOST);
        tally.good += 1;
        tally.latencies.push(took);
    }

    fn limit(&self) -> u32 {
        self.nodes.iter().map(|node| node.adaptive.limit()).sum()
    }

    /// What it mostly is in the next seconds.
    fn usual_limit(&mut self) -> u32 {
        let mut limits: Vec<u32> = (0..21).map(|_| (self.run(1), self.limit()).1).collect();
        limits.sort_unstable();
        limits[10]
    }

    /// The median of the work.
    fn without_load_ms(&self) -> f64 {
        let varies = match self.work {
            Work::Steady => 1.0,
            Work::Varied => std::f64::consts::LN_2,
        };
        self.takes * varies / 1000.0
    }

    fn baseline_ms(&self) -> f64 {
        self.nodes[0].adaptive.baseline().unwrap().as_secs_f64() * 1000.0
    }
}

#[test]
fn it_finds_how_much_a_service_takes_from_below_and_from_above() {
    for places in [8, 40, 200] {
        let mut world = World::new(1, places, places as f64, Work::Steady);
        world.load(3.0);
        world.run(10);
        let expected = places as u32..=places as u32 * 17 / 10;
        let limit = world.usual_limit();
        assert!(expected.contains(&limit), "from below: {limit} for {places}");

        // Half of the places are gone.
        world.places = (0..places / 2).map(|_| Reverse(world.now)).collect();
        world.load(3.0);
        world.run(10);
        let expected = places as u32 / 2..=places as u32 * 17 / 20;
        let limit = world.usual_limit();
        assert!(expected.contains(&limit), "from above: {limit} for {}", places / 2);
    }
}

#[test]
fn under_three_times_the_load_replies_are_quick_and_the_service_is_busy() {
    for (work, most) in [(Work::Steady, TOLERATED), (Work::Varied, 1.5 * TOLERATED)] {
        let mut world = World::new(1, 20, 20.0, work);
        world.load(3.0);
        world.run(10);
        let mut tally = world.run(120);
        let (p50, good) = (tally.p50() / world.takes, tally.good as f64 / world.capacity(120));
        println!("{work:?}: p50 {p50:.2} times the work, {good:.3} of the capacity, limit {}", world.limit());
        assert!(p50 <= most, "{work:?}: p50 is {p50} times the work");
        assert!(good >= 0.9, "{work:?}: {good} of the capacity");
        assert!(tally.refused > tally.good);
    }
}

#[test]
fn the_baseline_stays_through_half_an_hour_of_overload() {
    for (nodes, work, most) in
        [(1, Work::Steady, 1.3), (1, Work::Varied, 1.4), (8, Work::Steady, 1.3), (8, Work::Varied, 1.6)]
    {
        let (places, takes_ms) = (20 * nodes, 50.0 * nodes as f64);
        let mut world = World::new(nodes, places, takes_ms, work);
        world.load(3.0);
        world.run(30);
        let mut last = Tally::default();
        for minute in 0..30 {
            last = world.run(60);
            if minute % 10 == 9 {
                println!("{nodes} nodes, {work:?}: baseline {:.1} ms, limits {}", world.baseline_ms(), world.limit());
            }
        }
        let (drifted, good) = (world.baseline_ms() / world.without_load_ms(), last.good as f64 / world.capacity(60));
        let (p50, limit) = (last.p50() / world.takes, f64::from(world.usual_limit()) / places as f64);
        println!("{nodes} nodes, {work:?}: baseline {drifted:.2}, limit {limit:.2}, p50 {p50:.2}, good {good:.3}");
        assert!((0.4..=most).contains(&drifted), "{nodes} nodes, {work:?}: the baseline is {drifted} of what it was");
        assert!(
            limit < 2.0 * most.max(f64::from(nodes as u32).sqrt()) && good >= 0.9,
            "{nodes} nodes, {work:?}: {limit} of the places, {good}"
        );
    }
}

#[test]
fn a_service_that_is_slower_for_good_is_found_out_and_one_that_is_quick_again_too() {
    for work in [Work::Steady, Work::Varied] {
        let mut world = World::new(1, 40, 25.0, work);
        world.load(1.5);
        world.run(20);
        world.takes *= 2.0;
        world.load(1.5);
        let before = world.run(40);
        let good = before.good as f64 / world.capacity(40);
        println!(
            "{work:?}: slower: {good:.3} of the capacity meanwhile, limit {}, baseline {:.1}",
            world.limit(),
            world.baseline_ms()
        );
        assert!(good > 0.5, "{work:?}: {good}");
        let found = world.baseline_ms() / world.without_load_ms();
        assert!((0.75..1.35).contains(&found), "{work:?}: slower: the baseline is {found} of what it is now");
        let after = world.run(30).good as f64 / world.capacity(30);
        let limit = world.usual_limit();
        assert!((36..=80).contains(&limit) && after >= 0.9, "{work:?}: slower: {limit} {after}");

        world.takes /= 2.0;
        world.load(1.5);
        // By two measurements at the latest.
        world.run(65);
        let mut after = world.run(30);
        let (p50, good) = (after.p50() / world.takes, after.good as f64 / world.capacity(30));
        println!("{work:?}: quick again: {good:.3}, p50 {p50:.2}, limit {}", world.limit());
        let limit = world.usual_limit();
        assert!((36..=80).contains(&limit) && good >= 0.9, "{work:?}: quick again: {limit} {good}");
        assert!(p50 < 1.5 * TOLERATED, "{work:?}: quick again: p50 is {p50} times the work");
    }
}

#[test]
fn who_is_idle_keeps_the_limit() {
    let mut world = World::new(1, 40, 20.0, Work::Varied);
    world.load(3.0);
    world.run(10);
    world.load(0.1);
    world.run(5);
    let limit = world.limit();
    let tally = world.run(600);
    assert_eq!((world.limit(), tally.refused), (limit, 0));
    // Nobody at all for an hour, and then one.
    world.now += 3_600_000_000;
    world.run(1);
    assert_eq!(world.limit(), limit);
}

#[test]
fn a_service_with_room_is_never_held_back_for_long() {
    let mut world = World::new(1, 400, 20.0, Work::Varied);
    world.load(0.5);
    let start = world.run(5);
    let later = world.run(100);
    println!("at first {} of {}, then {} of {}", start.refused, start.good, later.refused, later.good);
    assert!(later.refused * 1000 < later.good, "{} of {} refused", later.refused, later.good);
}

#[test]
fn quick_failures_are_no_low_latency_and_slow_ones_and_callers_that_leave_are_a_high_one() {
    let settle = |told: &dyn Fn(u64) -> Told| {
        let adaptive = Adaptive::new(1, SETTINGS, Millis(0), 0);
        let mut now = 0;
        let mut tell = |adaptive: &Adaptive, told: Told| {
            now += 1;
            adaptive.are_under_way(adaptive.limit(), adaptive.limit());
            adaptive.tell(0, told, Millis(now), SETTINGS, MOST);
        };
        (0..1500).for_each(|_| tell(&adaptive, Told::Good(Duration::from_millis(20))));
        let before = (adaptive.limit(), adaptive.baseline().unwrap());
        (0..1500).for_each(|each| tell(&adaptive, told(each)));
        (before, (adaptive.limit(), adaptive.baseline().unwrap()))
    };
    let (before, after) = settle(&|_| Told::Failed(Duration::from_millis(1)));
    assert_eq!(before, after, "they say nothing");
    for slow in [Told::Failed(Duration::from_millis(200)), Told::Unfinished(Duration::from_millis(200))] {
        let (before, after) = settle(&|each| if each < 1000 { slow } else { Told::Nothing });
        assert!(after.0 < before.0, "{slow:?}: {before:?} {after:?}");
    }
}
