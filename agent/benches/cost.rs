//! What a request costs: CPU time (user and system) of the proxy's process per request, of the agent with rules, metrics, circuit
//! and retries on, beside a plain hyper reverse proxy (hyper-util's automatic server and its legacy client, no features) in the
//! same run. Both have one worker; the load and the instance are in this process.
//!
//! `cargo bench -p switchyard-agent --bench cost`; with `-- counts`, also instructions and allocations (valgrind) and system
//! calls (strace) per request, which do not depend on how busy the machine is. Rounds alternate; the medians are compared.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use switchyard_proto::v1::switchyard_server::{Switchyard, SwitchyardServer};
use switchyard_proto::v1::{self, AgentMessage};
use tokio_stream::Stream;

const CONNECTIONS: usize = 16;
const ROUNDS: usize = 9;
const REQUESTS: usize = 40_000;
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ndate: Mon, 23 Nov 2026 00:00:00 GMT\r\ncontent-length: 13\r\n\r\nHello, world!";
const REQUEST: &[u8] = b"GET /api/items?id=7 HTTP/1.1\r\nhost: my-service.shop\r\nuser-agent: bench/1\r\naccept: */*\r\nx-version: v2\r\naccept-encoding: gzip\r\n\r\n";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|role| role == "plain") {
        return plain(args[2].parse().expect("the instance's address"));
    }
    let instance = instance();
    let controller = controller(instance);
    let counts = args.iter().any(|a| a == "counts");
    let mut agent = Subject::start(agent_command(controller, &[]));
    let mut plain = Subject::start(plain_command(instance, &[]));
    for subject in [&mut agent, &mut plain] {
        subject.warm();
    }
    let mut rounds: Vec<(f64, f64)> = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((agent.micros_per_request(), plain.micros_per_request()));
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let agent_cost = median(rounds.iter().map(|r| r.0).collect());
    let plain_cost = median(rounds.iter().map(|r| r.1).collect());
    let ratio = median(rounds.iter().map(|r| r.0 / r.1).collect());
    println!("CPU per request, median of {ROUNDS} rounds of {REQUESTS} requests over {CONNECTIONS} connections:");
    println!("  agent, all on  {agent_cost:6.2} us");
    println!("  plain hyper    {plain_cost:6.2} us");
    println!("  ratio          {ratio:6.3}   (median of the rounds' own ratios)");
    drop((agent, plain));
    if counts {
        println!("per request:                 instructions  allocations  system calls");
        for (name, valgrind, strace) in [
            ("agent, all on", agent_command(controller, VALGRIND), agent_command(controller, STRACE)),
            ("plain hyper", plain_command(instance, VALGRIND), plain_command(instance, STRACE)),
        ] {
            let (instructions, allocations) = instructions(valgrind);
            println!("  {name:24} {instructions:14.0} {allocations:12.1} {:13.2}", system_calls(strace));
        }
    }
}

// ------------------------------------------------------------------------------------------------ what is measured

struct Subject {
    child: Child,
    address: SocketAddr,
}

const VALGRIND: &[&str] = &["valgrind", "--tool=callgrind"];
const STRACE: &[&str] = &["strace", "-f", "-c", "-o"];

fn command(wrapper: &[&str], program: &std::path::Path) -> Command {
    match wrapper.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest);
            match *first {
                "strace" => command.arg(strace_output()),
                _ => command.arg(format!("--callgrind-out-file={}", callgrind_output().display())),
            };
            command.arg(program);
            command
        }
    }
}

fn strace_output() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("switchyard-cost-{}.strace", std::process::id()))
}

fn agent_command(controller: SocketAddr, wrapper: &[&str]) -> Command {
    let mut command = command(wrapper, std::path::Path::new(env!("CARGO_BIN_EXE_switchyard-agent")));
    let state = std::env::temp_dir().join(format!("switchyard-cost-{}", std::process::id()));
    command.args(["--controller", &format!("http://{controller}"), "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.args(["--workers", "1", "--drain", "1", "--state"]).arg(state);
    command
}

fn plain_command(instance: SocketAddr, wrapper: &[&str]) -> Command {
    let mut command = command(wrapper, &std::env::current_exe().unwrap());
    command.args(["plain", &instance.to_string()]);
    command
}

impl Subject {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the proxy starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("http=")?.parse().ok());
        Self { child, address: address.unwrap_or_else(|| panic!("the proxy said {line:?}")) }
    }

    /// Waits until requests are answered well, and lets caches and connections settle.
    fn warm(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !try_once(self.address) {
            assert!(Instant::now() < deadline, "the proxy never answered well");
        }
        load(self.address, 4_000);
    }

    fn micros_per_request(&mut self) -> f64 {
        let before = self.cpu();
        load(self.address, REQUESTS);
        (self.cpu() - before).as_secs_f64() * 1e6 / REQUESTS as f64
    }

    /// CPU time of all threads, to the nanosecond.
    fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("Linux");
        let nanos = tasks.filter_map(|task| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    fn stop(&mut self) -> String {
        // The process may be a tracer whose tracee has ended; what counts is that it ends.
        let _ = Command::new("kill").args(["-TERM", &self.tracee().to_string()]).status();
        let mut text = String::new();
        self.child.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
        let _ = self.child.wait();
        text
    }

    /// The process itself, where it was started by a tracer.
    fn tracee(&self) -> u32 {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().next().and_then(|c| c.parse().ok()).unwrap_or(id)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.tracee().to_string()]).stderr(Stdio::null()).status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Instructions and allocations per request: the difference between a short run and a longer one, both counted by callgrind.
fn instructions(command: Command) -> (f64, f64) {
    let program = command.get_program().to_owned();
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let run = |requests: usize| {
        let mut again = Command::new(&program);
        again.args(&args);
        let mut subject = Subject::start(again);
        let deadline = Instant::now() + Duration::from_secs(120);
        while !try_once(subject.address) {
            assert!(Instant::now() < deadline, "the proxy never answered well");
        }
        load(subject.address, requests);
        subject.stop();
        let profile = std::fs::read_to_string(callgrind_output()).expect("callgrind's output");
        (total(&profile), allocations(&profile))
    };
    let (few, many) = (500, 4_500);
    let (first, second) = (run(few), run(many));
    let per_request = |few_count: f64, many_count: f64| (many_count - few_count) / (many - few) as f64;
    (per_request(first.0, second.0), per_request(first.1, second.1))
}

/// All instructions of a profile.
fn total(profile: &str) -> f64 {
    let line = profile.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    line.and_then(|numbers| numbers.split_whitespace().next()?.parse().ok()).expect("a sum")
}

/// Calls that hand out memory, of the system's allocator and of mimalloc, from anywhere but from one another.
fn allocations(profile: &str) -> f64 {
    const ENTRIES: [&str; 9] = [
        "malloc",
        "calloc",
        "realloc",
        "posix_memalign",
        "mi_malloc",
        "mi_zalloc",
        "mi_realloc",
        "mi_malloc_aligned",
        "mi_realloc_aligned",
    ];
    let is_entry = |name: &str| ENTRIES.contains(&name.split(['@', '\'', ' ']).next().unwrap_or(name));
    let mut names = std::collections::HashMap::new();
    // A name stands beside its number the first time, and the number alone stands for it after.
    let mut name_of = |text: &str| -> String {
        let (number, name) = text.split_once(' ').unwrap_or((text, ""));
        if !name.is_empty() {
            names.insert(number.to_owned(), name.to_owned());
        }
        names.get(number).cloned().unwrap_or_default()
    };
    let (mut inside, mut called, mut count) = (false, false, 0.0);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            inside = is_entry(&name_of(name));
        } else if let Some(name) = line.strip_prefix("cfn=") {
            called = is_entry(&name_of(name));
        } else if let Some(calls) = line.strip_prefix("calls=")
            && called
            && !inside
        {
            count += calls.split_whitespace().next().and_then(|c| c.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    count
}

fn callgrind_output() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("switchyard-cost-{}.callgrind", std::process::id()))
}

fn system_calls(command: Command) -> f64 {
    let program = command.get_program().to_owned();
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let run = |requests: usize| {
        let mut again = Command::new(&program);
        again.args(&args);
        let mut subject = Subject::start(again);
        subject.warm();
        load(subject.address, requests);
        subject.stop();
        let text = std::fs::read_to_string(strace_output()).unwrap();
        let total = text.lines().rev().find(|line| line.trim_end().ends_with("total")).expect("strace's sum");
        total.split_whitespace().nth(3).unwrap().parse::<f64>().unwrap()
    };
    let (few, many) = (1_000, 9_000);
    (run(many) - run(few)) / (many - few) as f64
}

// ------------------------------------------------------------------------------------------------ load and instance

fn try_once(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(REQUEST).unwrap();
    let mut reply = [0; 15];
    stream.read_exact(&mut reply).is_ok() && reply.starts_with(b"HTTP/1.1 200")
}

/// So many requests over [`CONNECTIONS`] connections, one under way on each.
fn load(address: SocketAddr, requests: usize) {
    let share = requests / CONNECTIONS;
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                let mut buffer = [0; 4096];
                for _ in 0..share {
                    stream.write_all(REQUEST).unwrap();
                    let mut have = 0;
                    while !buffer[..have].ends_with(b"Hello, world!") {
                        let more = stream.read(&mut buffer[have..]).unwrap();
                        assert!(more > 0, "the proxy closed: {}", String::from_utf8_lossy(&buffer[..have]));
                        have += more;
                    }
                    assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..have]));
                }
            });
        }
    });
}

/// Answers whatever comes with the same bytes.
fn instance() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                let (mut buffer, mut have) = ([0; 4096], 0);
                while let Ok(more) = stream.read(&mut buffer[have..])
                    && more > 0
                {
                    have += more;
                    if buffer[..have].ends_with(b"\r\n\r\n") {
                        have = 0;
                        if stream.write_all(REPLY).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

// ------------------------------------------------------------------------------------------------ the controller

/// Serves one configuration: ten rules, a circuit policy and a retry policy.
fn controller(instance: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let service = SwitchyardServer::new(Fixed { instance });
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
    });
    address
}

struct Fixed {
    instance: SocketAddr,
}

#[tonic::async_trait]
impl Switchyard for Fixed {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<v1::Update, tonic::Status>> + Send>>;
    type ShareStream = tokio_stream::Empty<Result<v1::ShareReply, tonic::Status>>;

    async fn subscribe(
        &self,
        _: tonic::Request<tonic::Streaming<AgentMessage>>,
    ) -> Result<tonic::Response<Self::SubscribeStream>, tonic::Status> {
        let update = configuration(self.instance);
        let once = tokio_stream::once(Ok(update));
        Ok(tonic::Response::new(Box::pin(tokio_stream::StreamExt::chain(once, tokio_stream::pending()))))
    }

    async fn relay(
        &self,
        _: tonic::Request<tonic::Streaming<v1::RelayMessage>>,
    ) -> Result<tonic::Response<v1::RelayReply>, tonic::Status> {
        Err(tonic::Status::unimplemented("there is one controller"))
    }

    async fn share(
        &self,
        _: tonic::Request<v1::ShareRequest>,
    ) -> Result<tonic::Response<Self::ShareStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("there is one controller"))
    }
}

fn configuration(instance: SocketAddr) -> v1::Update {
    let key = |kind: v1::Kind| {
        Some(v1::ResourceKey { kind: kind.into(), namespace: "shop".into(), name: "my-service".into() })
    };
    let exact = |value: &str| v1::StringMatch { r#type: v1::MatchType::Exact.into(), value: value.into() };
    let destination = |version: &str, weight| v1::Destination {
        namespace: "shop".into(),
        service: "my-service".into(),
        selector: Some(v1::Selector { version: version.into(), ..Default::default() }),
        weight,
        ..Default::default()
    };
    let rules = (0..10).map(|number| v1::Rule {
        name: format!("shop/rule-{number}"),
        destinations: vec![destination("v2", 20), destination("v1", 80)],
        ..Default::default()
    });
    // Nine rules for other paths come before the one that matches.
    let matches = (0..10u32).map(|rule| v1::Match {
        rule,
        path: Some(v1::StringMatch {
            r#type: v1::MatchType::Prefix.into(),
            value: if rule == 9 { "/api".into() } else { format!("/other-{rule}") },
        }),
        headers: vec![v1::NamedMatch { name: "x-version".into(), r#match: Some(exact("v2")) }],
        ..Default::default()
    });
    let failures =
        v1::Conditions { server_error: true, connect_failure: true, timeout: true, reset: true, ..Default::default() };
    let routes = v1::ServiceRoutes {
        ports: vec![v1::ServicePort { port: 80, name: "http".into(), protocol: v1::Protocol::Http1.into() }],
        rules: rules.collect(),
        matches: matches.collect(),
        circuits: vec![v1::CircuitPolicy {
            name: "shop/circuit".into(),
            failure_threshold: 5,
            error_rate_threshold_ppm: 500_000,
            minimum_requests: 20,
            window_ms: 10_000,
            timeout_ms: 60_000,
            success_threshold: 2,
            half_open_requests: 1,
            failures: Some(failures.clone()),
            ..Default::default()
        }],
        retries: vec![v1::RetryPolicy {
            name: "shop/retry".into(),
            max_retries: 3,
            initial_delay_ms: 1000,
            max_delay_ms: 30_000,
            multiplier_milli: 2000,
            jitter_ppm: 100_000,
            retry_on: Some(failures),
            methods: ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"].map(str::to_owned).into(),
            budget_ratio_ppm: 200_000,
            budget_min_per_second: 10,
            budget_window_ms: 10_000,
            max_body_bytes: 65_536,
            ..Default::default()
        }],
        ..v1::ServiceRoutes::default()
    };
    let instances = ["v1", "v2"].map(|version| v1::Instance {
        address: instance.ip().to_string(),
        ports: vec![v1::InstancePort { service_port: 80, port: instance.port().into() }],
        version: version.into(),
        ready: true,
        ..Default::default()
    });
    let resource = |kind, content| v1::Resource { key: key(kind), version: "1".into(), content: Some(content) };
    let instances = v1::ServiceInstances { instances: instances.into() };
    let resources = [
        resource(v1::Kind::Routes, v1::resource::Content::Routes(routes)),
        resource(v1::Kind::Instances, v1::resource::Content::Instances(instances)),
    ];
    v1::Update::of(1, resources)
}

// ------------------------------------------------------------------------------------------------ the plain proxy

/// What anybody would write with hyper in an afternoon.
fn plain(instance: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let client: Client<_, hyper::body::Incoming> = Client::builder(TokioExecutor::new()).build_http();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("listening http={}", listener.local_addr().unwrap());
        let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => accepted.unwrap(),
                _ = stop.recv() => return,
            };
            stream.set_nodelay(true).unwrap();
            let client = client.clone();
            let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
                *request.uri_mut() = format!("http://{instance}{path}").parse().unwrap();
                let reply = client.request(request);
                async move { Ok::<_, Infallible>(reply.await.unwrap()) }
            });
            tokio::task::spawn_local(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}
