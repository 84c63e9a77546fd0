//! What finding the rule of a request costs, with 1 to 100,000 rules of each shape, by the index and by a walk over all entries; what a
//! table of 10,000 takes to build, in time and memory; and that a match takes no memory.
//!
//! `cargo bench -p switchyard-agent --bench match`; with `-- build`, only the building; with `-- check`, it fails where 10,000 rules cost more than twice what 10 do (of regular
//! expressions, ten times), where building takes 100 ms, a rule 1 KiB, or a match any memory.

#![allow(
    missing_docs,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use switchyard_agent::matching::{Entry, Index, View};
use switchyard_agent::resources::Resources;
use switchyard_agent::runtime::Runtime;
use switchyard_agent::table::{Table, Workload};
use switchyard_proto::v1;

/// Counts what is asked of the system's allocator.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: as of the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as of the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const SIZES: [usize; 6] = [1, 10, 100, 1_000, 10_000, 100_000];
/// Requests that are asked in turn, spread over all rules.
const REQUESTS: usize = 256;
const ROUNDS: usize = 100;
/// Short, so that some round is not disturbed ...
const ROUND: Duration = Duration::from_millis(1);
/// ... and no more rounds than fit in this.
const ALL_ROUNDS: Duration = Duration::from_millis(300);

/// One kind of set of rules.
struct Shape {
    name: &'static str,
    /// How much more 10,000 rules may cost than 10.
    most: f64,
    rule: fn(usize) -> v1::Match,
    request: fn(usize) -> Asked,
}

/// A request.
struct Asked {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    caller: Workload,
    grpc: bool,
}

impl Asked {
    /// As a browser might send it.
    fn new(path: String) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "my-service.shop"),
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
            ("accept", "text/html,application/xhtml+xml"),
            ("accept-encoding", "gzip, deflate, br"),
            ("x-request-id", "0197b7a1-7c1c-7c1e-9f61-3d9f3f0b0f55"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let caller = Workload { namespace: "web".into(), service_account: "front".into(), ..Workload::default() };
        Self { method: Method::GET, path, query: None, headers, caller, grpc: false }
    }

    fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        self
    }

    fn view(&self) -> View<'_> {
        View {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port: 80,
            grpc: self.grpc,
            caller: Some(&self.caller),
        }
    }
}

fn text(kind: v1::MatchType, value: String) -> v1::StringMatch {
    v1::StringMatch { r#type: kind.into(), value }
}

fn exact(name: &str, value: String) -> v1::NamedMatch {
    v1::NamedMatch { name: name.into(), r#match: Some(text(v1::MatchType::Exact, value)) }
}

fn path(kind: v1::MatchType, value: String) -> v1::Match {
    v1::Match { path: Some(text(kind, value)), ..v1::Match::default() }
}

fn on_one_path() -> v1::Match {
    path(v1::MatchType::Prefix, "/api".into())
}

const SHAPES: [Shape; 11] = [
    Shape {
        name: "path prefixes",
        most: 2.0,
        rule: |i| path(v1::MatchType::Prefix, format!("/service-{i}")),
        request: |i| Asked::new(format!("/service-{i}/items/7")),
    },
    Shape {
        name: "exact paths",
        most: 2.0,
        rule: |i| path(v1::MatchType::Exact, format!("/service-{i}/items/7")),
        request: |i| Asked::new(format!("/service-{i}/items/7")),
    },
    Shape {
        name: "values of a header on one path",
        most: 2.0,
        rule: |i| v1::Match { headers: vec![exact("x-tenant", format!("tenant-{i}"))], ..on_one_path() },
        request: |i| Asked::new("/api/items".into()).header("x-tenant", format!("tenant-{i}")),
    },
    Shape {
        name: "values of a query parameter",
        most: 2.0,
        rule: |i| v1::Match { query_params: vec![exact("tenant", format!("tenant-{i}"))], ..on_one_path() },
        request: |i| Asked { query: Some(format!("page=3&tenant=tenant-{i}")), ..Asked::new("/api/items".into()) },
    },
    Shape {
        name: "values of a cookie",
        most: 2.0,
        rule: |i| v1::Match { cookies: vec![exact("tenant", format!("tenant-{i}"))], ..on_one_path() },
        request: |i| Asked::new("/api/items".into()).header("cookie", format!("theme=dark; tenant=tenant-{i}")),
    },
    Shape {
        name: "names of headers",
        most: 2.0,
        rule: |i| v1::Match { headers: vec![exact(&format!("x-tenant-{i}"), "1".into())], ..v1::Match::default() },
        request: |i| {
            let mut asked = Asked::new("/api/items".into());
            asked.headers.insert(HeaderName::try_from(format!("x-tenant-{i}")).unwrap(), HeaderValue::from_static("1"));
            asked
        },
    },
    Shape {
        name: "calls of gRPC",
        most: 2.0,
        rule: |i| v1::Match {
            grpc: Some(v1::GrpcMatch {
                service: format!("shop.Service{}", i / 10),
                method: format!("Method{}", i % 10),
            }),
            ..v1::Match::default()
        },
        request: |i| Asked {
            method: Method::POST,
            grpc: true,
            ..Asked::new(format!("/shop.Service{}/Method{}", i / 10, i % 10))
        },
    },
    Shape {
        name: "callers",
        most: 2.0,
        rule: |i| v1::Match {
            source: Some(v1::SourceMatch {
                namespace: format!("team-{}", i / 10),
                service_account: format!("account-{}", i % 10),
                ..v1::SourceMatch::default()
            }),
            ..v1::Match::default()
        },
        request: |i| {
            let mut asked = Asked::new("/api/items".into());
            asked.caller.namespace = format!("team-{}", i / 10);
            asked.caller.service_account = format!("account-{}", i % 10);
            asked
        },
    },
    Shape {
        name: "a mix of all that",
        most: 2.0,
        rule: |i| {
            let mut rule = match i % 5 {
                0 => path(v1::MatchType::Exact, format!("/service-{i}/items/7")),
                1 => path(v1::MatchType::Prefix, format!("/service-{i}")),
                _ => path(v1::MatchType::Prefix, format!("/shared-{}", i / 50)),
            };
            match i % 5 {
                2 => rule.headers = vec![exact("x-tenant", format!("tenant-{i}"))],
                3 => rule.cookies = vec![exact("tenant", format!("tenant-{i}"))],
                4 => rule.query_params = vec![exact("tenant", format!("tenant-{i}"))],
                _ => rule.method = "GET".into(),
            }
            rule
        },
        request: |i| {
            let service = if i % 5 < 2 { format!("service-{i}") } else { format!("shared-{}", i / 50) };
            let asked = Asked::new(format!("/{service}/items/7"));
            let asked = asked.header("x-tenant", format!("tenant-{i}")).header("cookie", format!("tenant=tenant-{i}"));
            Asked { query: Some(format!("tenant=tenant-{i}")), ..asked }
        },
    },
    Shape {
        name: "regular expressions that end alike",
        most: 10.0,
        rule: |i| path(v1::MatchType::RegularExpression, format!("/service-{i}/(items|things)/[0-9]+")),
        request: |i| Asked::new(format!("/service-{i}/items/7")),
    },
    Shape {
        name: "regular expressions that begin alike",
        most: 10.0,
        rule: |i| path(v1::MatchType::RegularExpression, format!(r"/v\d+/[^/]+/service-{i}(/.*)?")),
        request: |i| Asked::new(format!("/v1/shop/service-{i}/items/7")),
    },
];

fn main() {
    let is_asked = |word: &str| std::env::args().any(|arg| arg == word);
    let mut failed = Vec::new();
    if !is_asked("build") {
        matching(&mut failed);
    }
    building(&mut failed);
    if is_asked("check") && !failed.is_empty() {
        panic!("{}", failed.join("; "));
    }
}

fn matching(failed: &mut Vec<String>) {
    println!("ns per match, of {REQUESTS} requests spread over all rules; the best of {ROUNDS} rounds");
    println!("{:38} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}", "", 1, 10, 100, "1,000", "10,000", "100,000");
    let mut allocations = 0;
    for shape in SHAPES {
        let mut by_index = Vec::new();
        let mut by_walk = Vec::new();
        for size in SIZES {
            let set = Set::new(&shape, size);
            by_index.push(set.nanos(Set::find));
            allocations += set.allocations();
            by_walk.push(set.nanos(Set::walk));
        }
        let line = |of: &[f64]| of.iter().map(|nanos| format!("{nanos:>9.0}")).collect::<Vec<_>>().join(" ");
        println!("{:35} {}", shape.name, line(&by_index));
        println!("{:>35} {}", "walk", line(&by_walk));
        let ratio = by_index[4] / by_index[1];
        println!("{:>35} {ratio:.2} (at most {})", "10,000 to 10", shape.most);
        if ratio > shape.most {
            failed.push(format!("{}: 10,000 rules cost {ratio:.2} times what 10 do", shape.name));
        }
    }
    println!("\nallocations in all these matches: {allocations}");
    if allocations > 0 {
        failed.push(format!("{allocations} allocations"));
    }
}

fn building(failed: &mut Vec<String>) {
    println!(
        "\nbuilding, CPU time and memory for each rule: 10,000 entries with their index; the table of 10,000 rules with all"
    );
    println!("that belongs to it (a destination each); and 10,000 entries after each has been asked");
    for shape in SHAPES {
        let wire = numbered(&shape, 10_000);
        let (time, bytes) = built(|| entries(&wire));
        let wire_table = resources(&shape, 10_000);
        let (whole, whole_bytes) = built(|| Table::build(&wire_table, &Table::default(), &Runtime::new(1), None));
        let (_, asked) = built(|| {
            let (entries, index) = entries(&wire);
            for i in 0..10_000 {
                black_box(index.first(&entries, &(shape.request)(i).view()));
            }
            (entries, index)
        });
        println!(
            "{:38} {time:>6.1} ms {bytes:>5} bytes {whole:>8.1} ms {whole_bytes:>5} bytes {asked:>8} bytes",
            shape.name
        );
        if whole > 100.0 || whole_bytes > 1024 {
            failed.push(format!("{}: {whole:.1} ms, {whole_bytes} bytes for each rule", shape.name));
        }
    }
}

/// CPU time of this thread, so that whatever else runs here does not count.
fn cpu_nanos() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split_whitespace().next().unwrap().parse().unwrap()
}

/// The rules of a shape in their order of precedence, as a controller sends them.
fn numbered(shape: &Shape, size: usize) -> Vec<v1::Match> {
    let mut all: Vec<v1::Match> = (0..size).map(shape.rule).collect();
    all.sort_by_cached_key(|rule| {
        let path = rule.path.as_ref().filter(|path| path.r#type() != v1::MatchType::RegularExpression);
        let exact = path.is_some_and(|path| path.r#type() == v1::MatchType::Exact);
        let prefix = path.filter(|_| !exact).map_or(0, |path| path.value.len());
        let named = rule.headers.len() + rule.cookies.len();
        std::cmp::Reverse((exact, prefix, !rule.method.is_empty(), named, rule.query_params.len()))
    });
    (0..).zip(all).map(|(position, rule)| v1::Match { rule: position, ..rule }).collect()
}

fn entries(wire: &[v1::Match]) -> (Vec<Entry>, Index) {
    let entries: Vec<Entry> = wire.iter().map(|rule| Entry::compile(rule).unwrap()).collect();
    let index = Index::new(&entries);
    (entries, index)
}

/// Milliseconds, and bytes for each of 10,000.
fn built<T>(build: impl Fn() -> T) -> (f64, usize) {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..5 {
        let (before, begin) = (BYTES.load(Relaxed), cpu_nanos());
        let made = build();
        times.push((cpu_nanos() - begin) as f64 / 1e6);
        bytes = (BYTES.load(Relaxed) - before) / 10_000;
        drop(made);
    }
    (median(times), bytes)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Rules and their index.
struct Set {
    entries: Vec<Entry>,
    index: Index,
    requests: Vec<Asked>,
}

impl Set {
    fn new(shape: &Shape, size: usize) -> Self {
        let (entries, index) = entries(&numbered(shape, size));
        // Spread by a step that has no divisor in common with any size.
        let requests = (0..REQUESTS.min(size)).map(|i| (shape.request)(i * 7919 % size)).collect();
        let set = Self { entries, index, requests };
        for asked in &set.requests {
            let rule = |entry: Option<&Entry>| entry.map(|entry| entry.rule).expect("each request has a rule");
            assert_eq!(rule(set.find(asked)), rule(set.walk(asked)), "{}", shape.name);
        }
        set
    }

    fn find(&self, asked: &Asked) -> Option<&Entry> {
        self.index.first(&self.entries, &asked.view())
    }

    fn walk(&self, asked: &Asked) -> Option<&Entry> {
        let view = asked.view();
        self.entries.iter().find(|entry| entry.holds(&view).is_ok())
    }

    fn nanos(&self, find: for<'a> fn(&'a Self, &'a Asked) -> Option<&'a Entry>) -> f64 {
        let first = Instant::now();
        let round = |_| {
            let begin = Instant::now();
            let mut count = 0;
            while begin.elapsed() < ROUND {
                for asked in &self.requests {
                    black_box(find(self, black_box(asked)));
                }
                count += self.requests.len();
            }
            begin.elapsed().as_secs_f64() * 1e9 / count as f64
        };
        // The best: what comes on top is of whatever else runs here.
        let rounds = (0..ROUNDS).take_while(|round| *round == 0 || first.elapsed() < ALL_ROUNDS);
        rounds.map(round).fold(f64::MAX, f64::min)
    }

    fn allocations(&self) -> usize {
        let before = CALLS.load(Relaxed);
        for asked in &self.requests {
            black_box(self.find(asked));
        }
        CALLS.load(Relaxed) - before
    }
}

/// The same rules as an agent gets them, each with a destination of its own, and two instances.
fn resources(shape: &Shape, size: usize) -> Resources {
    let destination = v1::Destination {
        namespace: "shop".into(),
        service: "my-service".into(),
        weight: 1,
        ..v1::Destination::default()
    };
    let rule = |i: usize| v1::Rule {
        name: format!("shop/rule-{i}"),
        destinations: vec![destination.clone()],
        ..v1::Rule::default()
    };
    let routes = v1::ServiceRoutes {
        ports: vec![v1::ServicePort { port: 80, name: "http".into(), protocol: v1::Protocol::Http1.into() }],
        rules: (0..size).map(rule).collect(),
        matches: numbered(shape, size),
        ..v1::ServiceRoutes::default()
    };
    let instances = ["10.0.0.1", "10.0.0.2"].map(|address| v1::Instance {
        address: address.into(),
        ports: vec![v1::InstancePort { service_port: 80, port: 8080 }],
        ready: true,
        ..v1::Instance::default()
    });
    let mut resources = Resources::default();
    for (kind, content) in [
        (v1::Kind::Routes, v1::resource::Content::Routes(routes)),
        (v1::Kind::Instances, v1::resource::Content::Instances(v1::ServiceInstances { instances: instances.into() })),
    ] {
        let key = v1::ResourceKey { kind: kind.into(), namespace: "shop".into(), name: "my-service".into() };
        resources.put(v1::Resource { key: Some(key), version: "1".into(), content: Some(content) });
    }
    resources
}
