//! A node where v1 and v2 serve and an agent takes connections in, with what a controller says of it. v1 answers on the plain path, v2 by
//! the rule that the agent has, so each reply says which way its connection went.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use switchyard_proto::v1;
use tokio::sync::watch;

use crate::client::{self, Error, Reply, get_request};
use crate::feed::Feed;
use crate::load::Load;
use crate::node::{Node, Pod};
use crate::process::{Process, Switchyard};
use crate::{in_time, wait_for};

/// The Service that is opted in.
pub const IN: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// A Service that is not.
pub const OUT: [&str; 2] = ["10.96.0.20", "fd96::20"];

/// An address, from its text.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What a controller says of the opted-in Service: at port 80 (HTTP), 81 (not said) and 3306 (TCP), all by a rule for v2.
pub fn said(node: &Node, callers: &[&Pod]) -> v1::Update {
    let key = |kind: v1::Kind, namespace: &str, name: &str| {
        Some(v1::ResourceKey { kind: kind.into(), namespace: namespace.into(), name: name.into() })
    };
    let resource = |kind, namespace, name, content: v1::resource::Content| v1::Resource {
        key: key(kind, namespace, name),
        version: format!("{content:?}"),
        content: Some(content),
    };
    let port = |port, name: &str, protocol: v1::Protocol| v1::ServicePort {
        port,
        name: name.into(),
        protocol: protocol.into(),
    };
    let to_v2 = v1::Destination {
        namespace: "shop".into(),
        service: "my-service".into(),
        selector: Some(v1::Selector { version: "v2".into(), ..Default::default() }),
        weight: 1,
        ..Default::default()
    };
    let routes = v1::ServiceRoutes {
        ports: vec![
            port(80, "http", v1::Protocol::Http1),
            port(81, "any", v1::Protocol::Unspecified),
            port(3306, "sql", v1::Protocol::Tcp),
        ],
        rules: vec![v1::Rule { name: "shop/to-v2".into(), destinations: vec![to_v2], ..Default::default() }],
        matches: vec![v1::Match::default()],
        circuits: vec![v1::CircuitPolicy {
            name: "shop/circuit".into(),
            scope: v1::CircuitScope::Instance.into(),
            failure_threshold: 1,
            error_rate_threshold_ppm: 1_000_000,
            minimum_requests: 1000,
            window_ms: 10_000,
            timeout_ms: 600_000,
            backoff_multiplier_milli: 1000,
            backoff_max_timeout_ms: 600_000,
            success_threshold: 1,
            half_open_requests: 1,
            failures: Some(v1::Conditions { connect_failure: true, ..Default::default() }),
            ..Default::default()
        }],
        cluster_ips: IN.map(str::to_owned).to_vec(),
        intercepted: true,
        ..Default::default()
    };
    let instance = |(pod, version): (&Pod, &str)| v1::Instance {
        address: pod.v4.to_string(),
        other_address: pod.v6.to_string(),
        ports: [(80, 8080), (81, 8081), (3306, 3306)]
            .map(|(service_port, port)| v1::InstancePort { service_port, port })
            .to_vec(),
        version: version.into(),
        ready: true,
        ..Default::default()
    };
    let instances = [(&node.v1, "v1"), (&node.v2, "v2")].into_iter().map(instance);
    let workload = |pod: &&Pod| v1::Workload {
        addresses: vec![pod.v4.to_string(), pod.v6.to_string()],
        namespace: "shop".into(),
        name: pod.space.name.clone(),
        service_account: "default".into(),
        ..Default::default()
    };
    use v1::resource::Content;
    let instances = Content::Instances(v1::ServiceInstances { instances: instances.collect() });
    let workloads = Content::Workloads(v1::LocalWorkloads { workloads: callers.iter().map(workload).collect() });
    let resources = [
        resource(v1::Kind::Routes, "shop", "my-service", Content::Routes(routes)),
        resource(v1::Kind::Instances, "shop", "my-service", instances),
        resource(v1::Kind::Workloads, "", "n1", workloads),
    ];
    v1::Update::of(1, resources)
}

/// The same update, with its resources changed.
pub fn changed(update: v1::Update, change: impl FnOnce(&mut Vec<v1::Resource>)) -> v1::Update {
    let mut resources: Vec<_> = update.resources().collect::<Result<_, _>>().unwrap();
    change(&mut resources);
    v1::Update { removals: update.removals, ..v1::Update::of(update.revision, resources) }
}

/// Nothing is there that was not there, and the other way round.
pub fn same(now: &[String], before: &[String]) {
    let missing = |all: &[String], of: &[String]| -> Vec<String> {
        of.iter().filter(|line| !all.contains(line)).cloned().collect()
    };
    assert_eq!((missing(before, now), missing(now, before)), (Vec::new(), Vec::new()), "(new, gone)");
}

/// A node where v1 and v2 serve, with what a controller says.
#[derive(Debug)]
pub struct Scene {
    /// The node.
    pub node: Arc<Node>,
    /// What the controller says.
    pub say: watch::Sender<v1::Update>,
    /// The stand-in for a controller, while there is one.
    pub feed: Option<Feed>,
    /// Where agents look for it.
    pub controller: SocketAddr,
    state: tempfile::TempDir,
}

impl Scene {
    /// With pod `a` as the only one that is known to run on the node.
    pub async fn new() -> Self {
        Self::on(Node::new()).await
    }

    /// On this node.
    pub async fn on(node: Node) -> Self {
        let node = Arc::new(node);
        for port in [8080, 8081] {
            node.v1.serve(port, "v1").await;
            node.v2.serve(port, "v2").await;
        }
        node.plain_path(80, 8080);
        let (say, heard) = watch::channel(said(&node, &[&node.a]));
        let feed = node.space.run(async move { Feed::start("127.0.0.1:0".parse().unwrap(), heard) }).await;
        Self { controller: feed.address, node, say, feed: Some(feed), state: tempfile::tempdir().unwrap() }
    }

    /// An agent that takes connections in.
    pub async fn agent(&self, more: &[&str]) -> Agent {
        let controller = format!("http://{}", self.controller);
        let state = self.state.path().to_str().unwrap();
        let mut args = vec!["--controller", &controller, "--state", state, "--admin", "127.0.0.1:0", "--node", "n1"];
        args.push("--intercept");
        args.extend(more);
        let agent = Switchyard::agent_in(&self.node.space.name, &args).await;
        let agent = Agent { node: Arc::clone(&self.node), agent: Arc::new(agent) };
        agent.takes(true).await;
        agent
    }

    /// Asks from a pod, on a connection of its own.
    pub async fn ask(&self, pod: &Pod, service: &str, port: u16) -> Result<Reply, Error> {
        let address = SocketAddr::new(ip(service), port);
        pod.space.run(async move { in_time("a reply", client::get(address, "whoever", "/")).await }).await
    }

    /// The version that answers pod `a`.
    pub async fn answers(&self) -> String {
        self.ask(&self.node.a, IN[0], 80).await.unwrap().version().to_owned()
    }

    /// Callers in pod `a` that keep asking.
    pub async fn load(&self) -> Load {
        let address = SocketAddr::new(ip(IN[0]), 80);
        self.node.a.space.run(async move { Load::start(address, 8, || get_request("whoever", "/")) }).await
    }

    /// Waits until pod `a` is answered by this version, for at most as long as traffic may be lost.
    pub async fn answered_within_five_seconds_by(&self, version: &str) {
        let address = SocketAddr::new(ip(IN[0]), 80);
        let version = version.to_owned();
        let asking = self.node.a.space.run(async move {
            let answered = async {
                loop {
                    let one = tokio::time::timeout(Duration::from_millis(300), client::get(address, "whoever", "/"));
                    match one.await {
                        Ok(Ok(reply)) if reply.version() == version => return,
                        // Refused at once: not too often.
                        _ => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(5), answered).await
        });
        asking.await.expect("the traffic is back within five seconds");
    }
}

/// An agent on the node.
#[derive(Debug)]
pub struct Agent {
    node: Arc<Node>,
    agent: Arc<Switchyard>,
}

impl Agent {
    /// Its process.
    pub fn process(&self) -> &Process {
        &self.agent.process
    }

    /// A metric's value, as the agent tells it.
    pub async fn metric(&self, name: &'static str, labels: &'static [(&'static str, &'static str)]) -> f64 {
        let agent = Arc::clone(&self.agent);
        self.node.space.run(async move { agent.metric(name, labels).await }).await
    }

    /// Waits until it takes connections in, or does not.
    pub async fn takes(&self, takes: bool) {
        let wanted = if takes { 1.0 } else { 0.0 };
        wait_for(&format!("the agent takes connections in: {takes}"), async || {
            self.metric("switchyard_agent_intercepting", &[]).await == wanted
        })
        .await;
    }
}
