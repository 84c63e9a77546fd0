//! The stream from the controller: what comes is built into a table, swapped in whole, saved, and only then acknowledged.
//!
//! Keeps true:
//! - Acknowledged means in force: the ack goes out after the swap.
//! - The agent says what it holds when it connects, so only the difference comes.
//! - No controller is in the way of traffic: when the stream ends, what is in force stays, and the agent asks again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message as _;
use switchyard_proto::v1::agent_message::Message;
use switchyard_proto::v1::switchyard_client::SwitchyardClient;
use switchyard_proto::v1::{self, AgentMessage};
use tokio::io::DuplexStream;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};

use crate::admit::breaker::State;
use crate::admit::window::Millis;
use crate::clock;
use crate::evidence::{self, Evidence};
use crate::intercept;
use crate::resources::Resources;
use crate::runtime::KnownCircuit;
use crate::state::StateFile;
use crate::table::{ServiceKey, Table};
use crate::transitions::{shown, word};
use crate::worker::Shared;

/// The largest update that is taken in, in bytes: 10,000 Services of 10 instances fit many times over.
const MOST_BYTES: usize = 256 << 20;
/// The first wait before connecting again; it doubles up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Where the controller is.
#[derive(Clone, Debug)]
pub enum Controller {
    /// At one of these addresses, as in `http://127.0.0.1:15010`; the next one is tried when one does not answer.
    Addresses(Vec<Uri>),
    /// The same with TLS and a token, as in a cluster. Both files are read anew for each stream: they change while the agent runs.
    Cluster {
        /// As in `https://switchyard-controller.switchyard.svc:15010`.
        addresses: Vec<Uri>,
        /// The file with the certificate of the authority that the controller's certificate is of, PEM.
        ca: PathBuf,
        /// The file with the agent's token.
        token: PathBuf,
    },
    /// In this process: it gets the other end of each connection.
    Memory(mpsc::UnboundedSender<DuplexStream>),
}

/// What the agent holds, and how it stands with its controller. One task owns it.
#[derive(Debug)]
pub struct Subscription {
    /// What the workers share.
    pub shared: Arc<Shared>,
    /// What can be seen of it from outside.
    pub link: Arc<Link>,
    /// What was taken in.
    pub resources: Resources,
    /// Where it is saved.
    pub state: Option<StateFile>,
    /// The Service for requests whose Host names none.
    pub default_service: Option<ServiceKey>,
    /// This agent's name.
    pub node: String,
    /// Who is told when another table is in force.
    pub keeper: Option<std::sync::mpsc::Sender<intercept::Event>>,
}

/// How the agent stands with its controller.
#[derive(Debug, Default)]
pub struct Link {
    /// There is a stream.
    pub connected: AtomicBool,
    /// A table is in force, from the controller or from the last run.
    pub ready: AtomicBool,
    /// Resources that came, all streams together. Those of a resume are few.
    pub resources_received: AtomicU64,
    /// Updates that came.
    pub updates_received: AtomicU64,
    /// Resources that were turned down.
    pub resources_rejected: AtomicU64,
    /// Streams that were opened.
    pub streams: AtomicU64,
}

impl Subscription {
    /// Puts what is held in force.
    pub fn swap(&self) {
        let before = self.shared.table.load();
        let table = Table::build(&self.resources, &before, &self.shared.runtime, self.default_service.as_ref());
        drop(before);
        self.shared.table.store(Arc::new(table));
        for (known, transition) in self.shared.runtime.take_changes() {
            self.shared.transitions.note_known(&known, transition);
        }
        self.shared.tell_held();
        self.link.ready.store(true, Relaxed);
        self.shared.swapped.notify_one();
        if let Some(keeper) = &self.keeper {
            // An error means that the agent is ending.
            let _ = keeper.send(intercept::Event::Swapped);
        }
    }

    /// Keeps a stream to the controller, for ever.
    pub async fn run(mut self, controller: Controller) {
        let mut wait = BACKOFF.0;
        let mut evidence = Evidence::default();
        for turn in 0.. {
            let before = self.link.updates_received.load(Relaxed);
            match self.stream(&controller, turn, &mut evidence).await {
                Ok(()) => tracing::info!("the controller ended the stream"),
                Err(error) => tracing::warn!(error = error_chain(&*error), "no stream to the controller"),
            }
            evidence.forget(&self.shared.runtime, self.now());
            self.link.connected.store(false, Relaxed);
            // One that lets nobody in, or breaks off at once, is not asked any faster for that.
            if self.link.updates_received.load(Relaxed) > before {
                wait = BACKOFF.0;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// One stream, from hello to its end. `turn` says which of several addresses is tried.
    async fn stream(
        &mut self,
        controller: &Controller,
        turn: usize,
        evidence: &mut Evidence,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let channel = connect(controller, turn).await?;
        let mut client = SwitchyardClient::new(channel).max_decoding_message_size(MOST_BYTES);
        let (tell, told) = mpsc::channel::<AgentMessage>(64);
        let mut transitions = self.shared.transitions.listen();
        tell.send(AgentMessage { message: Some(Message::Hello(self.hello())) }).await?;
        let mut request = tonic::Request::new(ReceiverStream::new(told));
        if let Controller::Cluster { token, .. } = controller {
            let text = tokio::fs::read_to_string(token).await.map_err(|e| format!("{}: {e}", token.display()))?;
            let value =
                format!("Bearer {}", text.trim()).parse().map_err(|_| format!("{}: no token", token.display()))?;
            request.metadata_mut().insert("authorization", value);
        }
        let mut updates = client.subscribe(request).await?.into_inner();
        self.link.connected.store(true, Relaxed);
        self.link.streams.fetch_add(1, Relaxed);
        // There is room for it, and a stream that has ended says why below.
        let _ = tell.send(AgentMessage { message: Some(Message::Report(self.circuits())) }).await;
        let mut looks = tokio::time::interval(evidence::EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What has come of a revision that comes in several messages.
        let mut begun: Option<v1::Update> = None;
        loop {
            let answer = tokio::select! {
                update = updates.message() => match (update?, begun.take()) {
                    (Some(part), whole) => {
                        let mut whole = match whole {
                            Some(mut whole) => {
                                whole.extend(part);
                                whole
                            }
                            None => part,
                        };
                        if whole.more {
                            begun = Some(whole);
                            continue;
                        }
                        let seen = whole.evidence.take();
                        if let Some(seen) = &seen {
                            evidence.take(v1::Evidence::decode(seen.clone())?);
                            evidence.apply(&self.shared.runtime, self.now());
                        }
                        self.take(whole, seen.is_some())
                    }
                    (None, _) => return Ok(()),
                },
                _ = looks.tick() => match evidence.look(&self.shared.runtime, &self.shared.checks, self.now()) {
                    Some(views) => Message::Report(v1::Report { views: Some(views), ..v1::Report::default() }),
                    None => continue,
                },
                transition = transitions.recv() => match transition {
                    Ok(transition) => Message::Report(v1::Report { transitions: vec![transition], views: None }),
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
            };
            tell.send(AgentMessage { message: Some(answer) }).await?;
        }
    }

    fn hello(&self) -> v1::Hello {
        let held = self
            .resources
            .all()
            .map(|(key, resource)| v1::Held { key: Some(key.to_wire()), version: resource.version.clone() });
        v1::Hello { node: self.node.clone(), build: env!("CARGO_PKG_VERSION").to_owned(), held: held.collect() }
    }

    /// Every circuit that is not closed: what a controller that is new to them must know.
    fn circuits(&self) -> v1::Report {
        let known = self.shared.runtime.circuits();
        let now = self.now();
        let state = |circuit: &KnownCircuit| shown(circuit.breaker.state(), circuit.held(now));
        let not_closed = known.iter().filter(|circuit| state(circuit) != word(State::Closed));
        let tell = |circuit: &Arc<KnownCircuit>| {
            let latest = self.shared.transitions.of(&circuit.service.to_string(), &circuit.target);
            let latest = latest.map(|latest| (latest.reason, latest.since_ms)).unwrap_or_default();
            v1::CircuitTransition {
                namespace: circuit.service.namespace.clone(),
                service: circuit.service.name.clone(),
                target: circuit.target.clone(),
                state: state(circuit).to_owned(),
                reason: latest.0,
                since_ms: latest.1,
                policy: circuit.settings.name.to_string(),
            }
        };
        v1::Report { transitions: not_closed.map(tell).collect(), views: None }
    }

    /// The time as circuits count it.
    fn now(&self) -> Millis {
        self.shared.runtime.millis(clock::now())
    }

    /// Takes an update in, puts it in force and saves it. `with_evidence`: that was in it too, and it may have come for that alone.
    fn take(&mut self, update: v1::Update, with_evidence: bool) -> Message {
        let revision = update.revision;
        let changed = !update.upserts.is_empty() || !update.removals.is_empty();
        self.link.updates_received.fetch_add(1, Relaxed);
        if with_evidence && !changed && revision == self.resources.revision && self.link.ready.load(Relaxed) {
            return Message::Ack(v1::Ack { revision });
        }
        self.link.resources_received.fetch_add(update.upserts.len() as u64, Relaxed);
        let errors = self.resources.apply(update);
        self.swap();
        if let Some(state) = self.state.as_ref().filter(|_| changed)
            && let Err(error) = state.save(&self.resources)
        {
            tracing::warn!(%error, "cannot save the configuration; after a restart the one before holds");
        }
        tracing::debug!(revision, "in force");
        if errors.is_empty() {
            return Message::Ack(v1::Ack { revision });
        }
        self.link.resources_rejected.fetch_add(errors.len() as u64, Relaxed);
        for error in &errors {
            tracing::warn!(key = ?error.key, message = error.message, "turned down");
        }
        Message::Reject(v1::Reject { revision, errors })
    }
}

async fn connect(controller: &Controller, turn: usize) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
    match controller {
        Controller::Addresses(addresses) => Ok(endpoint(addresses, turn)?.connect().await?),
        Controller::Cluster { addresses, ca, .. } => {
            let pem = tokio::fs::read(ca).await.map_err(|e| format!("{}: {e}", ca.display()))?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            Ok(endpoint(addresses, turn)?.tls_config(tls)?.connect().await?)
        }
        Controller::Memory(connections) => {
            let connections = connections.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let (ours, theirs) = tokio::io::duplex(256 * 1024);
                let sent = connections.send(theirs);
                async move {
                    sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused))?;
                    Ok::<_, std::io::Error>(TokioIo::new(ours))
                }
            });
            // The name is for the authority field only; nothing looks it up.
            Ok(Endpoint::from_static("http://controller").connect_with_connector(connector).await?)
        }
    }
}

fn endpoint(addresses: &[Uri], turn: usize) -> Result<Endpoint, &'static str> {
    let uri = addresses.get(turn % addresses.len().max(1)).ok_or("there is no address")?;
    let endpoint = Endpoint::from(uri.clone())
        .connect_timeout(Duration::from_secs(5))
        // A controller whose host is gone is found out within half a minute.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    Ok(endpoint)
}

/// An error with its causes, in one line.
fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
