//! The one loop of the controller, and the life of a change from top to bottom: next batch of events; apply; compile what
//! is dirty; publish; report.
//!
//! Nothing is published before the source has told all that exists: half a picture would take from agents what they have.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::mem::take;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use switchyard_crds::Finding;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::compile;
use crate::object::{Kind, Object, ObjectKey, Pod, ServiceKey};
use crate::serve::agents::Agents;
use crate::serve::door::Door;
use crate::serve::webhook::{Question, Questions};
use crate::serve::{OnReport, Serve, evidence};
use crate::snapshot::{Routes, Snapshot};
use crate::source::directory::whereabouts::Whereabouts;
use crate::source::{Event, directory, kubernetes};
use crate::standing::{Board, Standings};
use crate::world::{Unit, World};

/// Changes that come within this time of one another go out as one.
const GATHER: Duration = Duration::from_millis(5);

/// An agent that does not answer a ping for this long is gone.
const PING: Duration = Duration::from_secs(10);

/// Where objects come from.
pub enum Source {
    /// A folder of manifests; every Service of it is taken.
    Directory {
        /// The folder.
        manifests: PathBuf,
        /// Where what is in force is kept over a restart; nowhere when absent.
        state: Option<PathBuf>,
    },
    /// A cluster; only Services that are opted in are taken, and those that their rules lead to.
    Kubernetes {
        /// Speaks with its API server.
        client: kube::Client,
        /// Namespace and name of the agents' ServiceAccount: where a Pod of it runs, there is to be an agent.
        agents: (String, String),
    },
}

/// What the controller is to do.
pub struct Options {
    /// Where objects come from.
    pub source: Source,
    /// Which agents are let in.
    pub door: Door,
    /// Is told of what happens. Called from the loop, so it must not wait for anything.
    pub on_report: Box<dyn Fn(Report) + Send + Sync>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// All that is wrong at this origin now: a file, or a Service with what is for it.
    Findings {
        /// A file's path, or `Service namespace/name`.
        origin: String,
        /// What is wrong there.
        findings: Vec<Finding>,
    },
    /// Nothing is wrong at this origin any more.
    Healed {
        /// As in [`Report::Findings`].
        origin: String,
    },
    /// There is a new revision for the agents.
    Published {
        /// Its number.
        revision: u64,
        /// The rules and policies that have changed, else the Services.
        changed: Vec<String>,
    },
    /// Agents have answered.
    InForce {
        /// A revision.
        revision: u64,
        /// How many agents have it, or a later one, in force.
        agents: usize,
        /// How many agents are connected.
        total: usize,
    },
    /// An agent could not use something.
    Rejected {
        /// The agent's node.
        node: String,
        /// What it could not use.
        key: String,
        /// Why.
        message: String,
    },
}

/// What can be seen of a controller that runs.
#[derive(Clone)]
pub struct Handle {
    published: watch::Receiver<Option<Arc<Snapshot>>>,
    standings: watch::Receiver<Standings>,
    agents: Arc<Agents>,
    findings: Arc<Mutex<BTreeMap<String, Vec<Finding>>>>,
    questions: Questions,
}

impl Handle {
    /// Where to ask what would be said of an object.
    pub fn questions(&self) -> Questions {
        self.questions.clone()
    }

    /// What is published; nothing until the manifests have been read.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.published.borrow().clone()
    }

    /// Which routes are published, and since when.
    pub fn routes(&self) -> Arc<Routes> {
        self.published.borrow().as_ref().map(|snapshot| snapshot.routes().clone()).unwrap_or_default()
    }

    /// How every rule and policy of a cluster stands.
    pub fn standings(&self) -> watch::Receiver<Standings> {
        self.standings.clone()
    }

    /// Who is connected.
    pub fn agents(&self) -> &Agents {
        &self.agents
    }

    /// All that is wrong now.
    pub fn findings(&self) -> Vec<Finding> {
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.values().flatten().cloned().collect()
    }
}

/// Questions that may wait for the loop.
const QUESTIONS: usize = 64;

/// Where the loop puts what it has made.
struct Publish {
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    standings: watch::Sender<Standings>,
}

/// A controller that is to run.
pub struct Controller {
    source: Source,
    door: Door,
    on_report: OnReport,
    publish: Publish,
    asked: mpsc::Receiver<Question>,
    handle: Handle,
}

/// Runs a controller until `shutdown` comes.
///
/// # Errors
/// When it cannot start, or the server fails.
pub async fn run<IO, E>(
    options: Options,
    incoming: impl Stream<Item = Result<IO, E>>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Controller::new(options).run(incoming, shutdown).await
}

impl Controller {
    /// A controller that does nothing yet.
    pub fn new(options: Options) -> Self {
        let (snapshot, published) = watch::channel(None);
        let (standings, seen) = watch::channel(Standings::new());
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let handle = Handle { published, standings: seen, agents: Arc::default(), findings: Arc::default(), questions };
        let publish = Publish { snapshot, standings };
        Self { source: options.source, door: options.door, on_report: options.on_report.into(), publish, asked, handle }
    }

    /// What can be seen of it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until `shutdown` comes, serving the agents on the connections that come in.
    ///
    /// # Errors
    /// When it cannot start, or the server fails.
    pub async fn run<IO, E>(
        self,
        incoming: impl Stream<Item = Result<IO, E>>,
        shutdown: impl Future<Output = ()>,
    ) -> anyhow::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Self { source, door, on_report, publish, asked, handle } = self;
        let whereabouts = Whereabouts::default();
        // A cluster's controllers elect the one that puts together what agents see.
        let is_alone = matches!(source, Source::Directory { .. });
        let (_always, leads) = watch::channel(is_alone);
        let (pipeline, events) = match source {
            Source::Directory { manifests, state } => {
                let events = directory::watch(manifests, state, whereabouts.clone())
                    .context("the folder of manifests cannot be watched")?;
                (Pipeline::default(), events)
            }
            Source::Kubernetes { client, agents } => {
                let pipeline = Pipeline { is_cluster: true, agents: Some(agents), ..Pipeline::default() };
                (pipeline, kubernetes::watch(&client))
            }
        };
        let service = Serve::service(handle.published.clone(), handle.agents.clone(), door, on_report.clone());
        let server = Server::builder()
            .http2_keepalive_interval(Some(PING))
            .http2_keepalive_timeout(Some(PING))
            .add_service(service)
            .serve_with_incoming(incoming);
        tokio::select! {
            result = server => result.context("the server for agents has failed"),
            () = turn(pipeline, events, asked, &whereabouts, &publish, &handle, &on_report) => Err(anyhow::anyhow!("the watch has ended")),
            () = evidence::run(handle.clone(), leads) => Err(anyhow::anyhow!("nobody puts together what agents see")),
            () = shutdown => Ok(()),
        }
    }
}

/// The loop.
async fn turn(
    mut pipeline: Pipeline,
    mut batches: mpsc::Receiver<Vec<Event>>,
    mut asked: mpsc::Receiver<Question>,
    whereabouts: &Whereabouts,
    publish: &Publish,
    handle: &Handle,
    on_report: &OnReport,
) {
    loop {
        let mut events = tokio::select! {
            batch = batches.recv() => match batch {
                Some(events) => events,
                None => return,
            },
            Some(question) = asked.recv() => {
                // Who asked may have given up.
                let _ = question.answer.send(pipeline.what_if(question.object));
                continue;
            }
        };
        let end = tokio::time::Instant::now() + GATHER;
        while let Ok(Some(more)) = tokio::time::timeout_at(end, batches.recv()).await {
            events.extend(more);
        }
        for event in events {
            pipeline.expect(&event, &handle.agents);
            pipeline.apply(event);
        }
        let reports = pipeline.compile();
        *handle.findings.lock().unwrap_or_else(PoisonError::into_inner) = pipeline.findings.clone();
        if pipeline.is_synced {
            let newest = publish.snapshot.borrow().as_ref().map(|snapshot| snapshot.revision());
            if newest != Some(pipeline.snapshot.revision()) {
                publish.snapshot.send_replace(Some(Arc::new(pipeline.snapshot.clone())));
            }
            if let Some(standings) = pipeline.board.settle(&pipeline.world, &pipeline.snapshot) {
                publish.standings.send_replace(standings);
            }
        }
        for mut report in reports {
            if let Report::Findings { findings, .. } = &mut report {
                whereabouts.fill(findings);
            }
            on_report(report);
        }
    }
}

/// What the loop remembers from one turn to the next. It does no I/O.
#[derive(Default)]
struct Pipeline {
    world: World,
    snapshot: Snapshot,
    dirty: BTreeSet<Unit>,
    /// Rules and policies that have changed since the last publication.
    changed: BTreeSet<String>,
    findings: BTreeMap<String, Vec<Finding>>,
    /// Reports that stand to be made.
    reports: Vec<Report>,
    is_synced: bool,
    /// Objects come from a cluster: there only what is opted in is taken, and everybody is told by status.
    is_cluster: bool,
    /// Namespace and name of the agents' ServiceAccount, in a cluster.
    agents: Option<(String, String)>,
    board: Board,
}

impl Pipeline {
    /// Where there is to be an agent, and where no more.
    fn expect(&self, event: &Event, agents: &Agents) {
        let is_agent = |pod: &Pod| {
            self.agents
                .as_ref()
                .is_some_and(|(namespace, name)| pod.namespace == *namespace && pod.service_account == *name)
        };
        match event {
            Event::Applied(Object::Pod(pod)) if is_agent(pod) => pod.node.iter().for_each(|node| agents.expect(node)),
            Event::Deleted(ObjectKey { kind: Kind::Node, name, .. }) => agents.forget(name),
            Event::Deleted(ObjectKey { kind: Kind::Pod, namespace, name }) => {
                let node =
                    self.world.pod(namespace, name).filter(|pod| is_agent(pod)).and_then(|pod| pod.node.as_ref());
                node.into_iter().for_each(|node| agents.forget(node));
            }
            _ => {}
        }
    }

    fn apply(&mut self, event: Event) {
        self.dirty.extend(self.world.apply(&event));
        match event {
            Event::Applied(object) => self.note(&object.key()),
            Event::Deleted(key) => {
                self.note(&key);
                self.board.forget(&key);
                if self.is_cluster {
                    self.found(key.to_string(), Vec::new());
                }
            }
            Event::Observed { key, observed } => self.board.observe(&key, observed),
            Event::Findings { origin, findings } => self.found(origin, findings),
            Event::Synced => self.is_synced = true,
        }
    }

    fn note(&mut self, key: &ObjectKey) {
        if matches!(key.kind, Kind::RouteRule | Kind::CircuitPolicy | Kind::RetryPolicy) {
            self.changed.insert(format!("{}/{}", key.namespace, key.name));
            self.board.touch(key);
        }
    }

    fn found(&mut self, origin: String, findings: Vec<Finding>) {
        let before = self.findings.get(&origin).map(Vec::as_slice).unwrap_or_default();
        if before == findings {
            return;
        }
        if self.is_cluster {
            self.board.found(&origin, &findings);
        }
        if findings.is_empty() {
            self.findings.remove(&origin);
            self.reports.push(Report::Healed { origin });
        } else {
            self.findings.insert(origin.clone(), findings.clone());
            self.reports.push(Report::Findings { origin, findings });
        }
    }

    /// Compiles what is dirty; what is to be told of it.
    fn compile(&mut self) -> Vec<Report> {
        if !self.is_synced {
            return take(&mut self.reports);
        }
        let mut services = Vec::new();
        let mut has_callers_changed = false;
        for unit in take(&mut self.dirty) {
            match unit {
                Unit::Service(key) => {
                    if self.compile_service(&key) {
                        services.push(key.to_string());
                    }
                }
                // A folder's agents run on no node of it, and any of its Pods may call through them.
                Unit::Node(_) if !self.is_cluster => has_callers_changed = true,
                Unit::Node(name) => {
                    if self.snapshot.set_node(&name, compile::node(&self.world, &name)) {
                        services.push(format!("node {name}"));
                    }
                }
            }
        }
        if has_callers_changed && self.snapshot.set_node("", compile::everybody(&self.world)) {
            services.push("the Pods that call".to_owned());
        }
        let changed = take(&mut self.changed);
        if !services.is_empty() || self.snapshot.revision() == 0 {
            self.snapshot.advance();
            let changed = if changed.is_empty() { services } else { changed.into_iter().collect() };
            self.reports.push(Report::Published { revision: self.snapshot.revision(), changed });
        }
        take(&mut self.reports)
    }

    /// What would be said of an object if it were there, beside what is wrong with it by itself.
    fn what_if(&mut self, object: Object) -> Vec<Finding> {
        let key = object.key();
        let before = self.world.custom_object(&key).cloned();
        let touched = self.world.apply(&Event::Applied(object));
        let mut findings = Vec::new();
        for unit in &touched {
            let Unit::Service(service) = unit else { continue };
            findings.extend(compile::service(&self.world, service).all_findings());
            let service = self.world.service(service);
            findings.extend(service.into_iter().flat_map(|service| compile::left_out(&self.world, service)));
        }
        self.world.apply(&before.map_or(Event::Deleted(key.clone()), Event::Applied));
        let name = key.object_name();
        findings.retain(|finding| finding.object == name);
        findings.sort();
        findings.dedup();
        findings
    }

    /// Whether what agents are given of a Service is another than before.
    fn compile_service(&mut self, key: &ServiceKey) -> bool {
        let mut compiled = compile::service(&self.world, key);
        let (routes, instances) = (take(&mut compiled.routes), take(&mut compiled.instances));
        let mut findings = compiled.all_findings();
        let service = self.world.service(key);
        if self.is_cluster {
            findings.extend(service.into_iter().flat_map(|service| compile::left_out(&self.world, service)));
        }
        let is_needed = service.is_some() && (!self.is_cluster || compile::is_needed(&self.world, key));
        let is_change = if is_needed { self.snapshot.set(key, routes, instances) } else { self.snapshot.remove(key) };
        self.found(format!("Service {key}"), findings);
        if self.is_cluster {
            self.board.compiled(&self.world, key);
        }
        is_change
    }
}
