//! The one loop of the controller, and the life of a change from top to bottom: next batch of events; apply; compile what
//! is dirty; publish; report.
//!
//! Nothing is published before the source has told all that exists: half a picture would take from agents what they have.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
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
use crate::object::{Kind, ObjectKey, ServiceKey};
use crate::serve::agents::Agents;
use crate::serve::{OnReport, Serve};
use crate::snapshot::Snapshot;
use crate::source::directory::whereabouts::Whereabouts;
use crate::source::{Event, directory};
use crate::world::World;

/// Changes that come within this time of one another go out as one.
const GATHER: Duration = Duration::from_millis(5);

/// An agent that does not answer a ping for this long is gone.
const PING: Duration = Duration::from_secs(10);

/// What the controller is to do.
pub struct Options {
    /// The folder of manifests.
    pub manifests: PathBuf,
    /// Where what is in force is kept over a restart; nowhere when absent.
    pub state: Option<PathBuf>,
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
    agents: Arc<Agents>,
    findings: Arc<Mutex<BTreeMap<String, Vec<Finding>>>>,
}

impl Handle {
    /// What is published; nothing until the manifests have been read.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.published.borrow().clone()
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

/// A controller that is to run.
pub struct Controller {
    manifests: PathBuf,
    state: Option<PathBuf>,
    on_report: OnReport,
    publish: watch::Sender<Option<Arc<Snapshot>>>,
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
        let (publish, published) = watch::channel(None);
        let handle = Handle { published, agents: Arc::default(), findings: Arc::default() };
        Self {
            manifests: options.manifests,
            state: options.state,
            on_report: options.on_report.into(),
            publish,
            handle,
        }
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
        let Self { manifests, state, on_report, publish, handle } = self;
        let whereabouts = Whereabouts::default();
        let events = directory::watch(manifests, state, whereabouts.clone())
            .context("the folder of manifests cannot be watched")?;
        let service = Serve::service(handle.published.clone(), handle.agents.clone(), on_report.clone());
        let server = Server::builder()
            .http2_keepalive_interval(Some(PING))
            .http2_keepalive_timeout(Some(PING))
            .add_service(service)
            .serve_with_incoming(incoming);
        tokio::select! {
            result = server => result.context("the server for agents has failed"),
            () = pipeline(events, &whereabouts, &publish, &handle, &on_report) => Err(anyhow::anyhow!("the watch has ended")),
            () = shutdown => Ok(()),
        }
    }
}

/// The loop.
async fn pipeline(
    mut batches: mpsc::Receiver<Vec<Event>>,
    whereabouts: &Whereabouts,
    publish: &watch::Sender<Option<Arc<Snapshot>>>,
    handle: &Handle,
    on_report: &OnReport,
) {
    let mut pipeline = Pipeline::default();
    while let Some(mut events) = batches.recv().await {
        let end = tokio::time::Instant::now() + GATHER;
        while let Ok(Some(more)) = tokio::time::timeout_at(end, batches.recv()).await {
            events.extend(more);
        }
        for event in events {
            pipeline.apply(event);
        }
        let reports = pipeline.compile();
        *handle.findings.lock().unwrap_or_else(PoisonError::into_inner) = pipeline.findings.clone();
        if pipeline.is_synced {
            publish.send_replace(Some(Arc::new(pipeline.snapshot.clone())));
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
    dirty: BTreeSet<ServiceKey>,
    /// Rules and policies that have changed since the last publication.
    changed: BTreeSet<String>,
    findings: BTreeMap<String, Vec<Finding>>,
    /// Reports that stand to be made.
    reports: Vec<Report>,
    is_synced: bool,
}

impl Pipeline {
    fn apply(&mut self, event: Event) {
        self.dirty.extend(self.world.apply(&event));
        match event {
            Event::Applied(object) => self.note(&object.key()),
            Event::Deleted(key) => self.note(&key),
            Event::Findings { origin, findings } => self.found(origin, findings),
            Event::Synced => self.is_synced = true,
        }
    }

    fn note(&mut self, key: &ObjectKey) {
        if matches!(key.kind, Kind::RouteRule | Kind::CircuitPolicy | Kind::RetryPolicy) {
            self.changed.insert(format!("{}/{}", key.namespace, key.name));
        }
    }

    fn found(&mut self, origin: String, findings: Vec<Finding>) {
        let before = self.findings.get(&origin).map(Vec::as_slice).unwrap_or_default();
        if before == findings {
            return;
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
            return std::mem::take(&mut self.reports);
        }
        let mut services = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let compiled = compile::service(&self.world, &key);
            let is_change = match self.world.service(&key) {
                Some(_) => self.snapshot.set(&key, compiled.routes, compiled.instances),
                None => self.snapshot.remove(&key),
            };
            if is_change {
                services.push(key.to_string());
            }
            self.found(format!("Service {key}"), compiled.findings);
        }
        let changed = std::mem::take(&mut self.changed);
        if !services.is_empty() || self.snapshot.revision() == 0 {
            self.snapshot.advance();
            let changed = if changed.is_empty() { services } else { changed.into_iter().collect() };
            self.reports.push(Report::Published { revision: self.snapshot.revision(), changed });
        }
        std::mem::take(&mut self.reports)
    }
}
