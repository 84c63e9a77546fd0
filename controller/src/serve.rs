//! One stream per agent: what it lacks goes down, its answers come up.
//!
//! One update is under way per agent until it answers; what changes meanwhile goes out as one difference to the newest
//! state, so a slow agent never makes a queue. What all agents see of instances goes the same way, and is answered like a revision.
//! Nothing goes out before the source has told all that exists: an agent that comes early keeps what it has. An agent that
//! talks nonsense ends its own stream and nobody else's.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use switchyard_proto::v1;
use switchyard_proto::v1::agent_message::Message;
use switchyard_proto::v1::switchyard_server::{Switchyard, SwitchyardServer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::run::Report;
use crate::snapshot::{Base, Delta, Key, Snapshot};

/// What the controller tells of itself over HTTP.
pub mod admin;
/// Who is connected, and what is in force there.
pub mod agents;
/// Who may connect.
pub mod door;
/// What agents see, put together.
pub mod evidence;
/// Controllers among themselves.
pub mod relay;
/// Certificates.
pub mod tls;
/// What the API server asks before it takes an object.
pub mod webhook;

use agents::{Agents, Connected};
use door::Door;
use evidence::Shared;

/// An agent says who it is within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// A Hello names each resource held in about a hundred bytes; this is room for 100,000 Services.
const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// About the largest message that goes out: each stream keeps the memory that its largest one took.
const PART_BYTES: usize = 64 << 10;

/// What is published: the newest snapshot, once there is one.
pub type Published = watch::Receiver<Option<Arc<Snapshot>>>;

/// Who is told of what happens.
pub type OnReport = Arc<dyn Fn(Report) + Send + Sync>;

/// Serves the newest snapshot to every agent.
pub struct Serve {
    published: Published,
    agents: Arc<Agents>,
    door: Door,
    on_report: OnReport,
}

impl Serve {
    /// The service, ready for a server.
    pub fn service(
        published: Published,
        agents: Arc<Agents>,
        door: Door,
        on_report: OnReport,
    ) -> SwitchyardServer<Self> {
        SwitchyardServer::new(Self { published, agents, door, on_report }).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl Switchyard for Serve {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<v1::Update, Status>> + Send>>;
    type ShareStream = Pin<Box<dyn Stream<Item = Result<v1::ShareReply, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let node = self.door.admit(request.metadata(), &self.agents.refusals).await?;
        let (updates, receiver) = mpsc::channel(1);
        let (published, agents, on_report) = (self.published.clone(), self.agents.clone(), self.on_report.clone());
        tokio::spawn(async move {
            let from_agent = request.into_inner();
            if let Err(status) = converse(from_agent, node, &updates, published, &agents, &on_report).await {
                tracing::debug!(%status, "an agent's stream has ended");
                // The agent may be gone already.
                let _ = updates.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn relay(&self, request: Request<Streaming<v1::RelayMessage>>) -> Result<Response<v1::RelayReply>, Status> {
        self.door.admit_controller(request.metadata(), &self.agents.refusals)?;
        relay::take(&self.agents, request.into_inner()).await.map(Response::new)
    }

    async fn share(&self, request: Request<v1::ShareRequest>) -> Result<Response<Self::ShareStream>, Status> {
        self.door.admit_controller(request.metadata(), &self.agents.refusals)?;
        let own = |shared: Arc<Shared>| if shared.is_anothers { Bytes::new() } else { shared.evidence.clone() };
        let all = WatchStream::new(self.agents.shared());
        Ok(Response::new(Box::pin(all.map(move |shared| Ok(v1::ShareReply { evidence: own(shared) })))))
    }
}

/// The life of a stream. It ends well when either side goes.
async fn converse(
    mut from_agent: Streaming<v1::AgentMessage>,
    node: Option<String>,
    updates: &mpsc::Sender<Result<v1::Update, Status>>,
    mut published: Published,
    agents: &Arc<Agents>,
    on_report: &OnReport,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_WITHIN, from_agent.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello came"))??;
    let Some(Message::Hello(hello)) = first.and_then(|message| message.message) else {
        return Err(Status::invalid_argument("the first message must be Hello"));
    };
    Door::check_node(node.as_deref(), &hello.node, &agents.refusals)?;
    let agent = agents.connect(&hello)?;
    let mut conversation = Conversation::new(hello)?;
    let mut shared = agents.shared();
    loop {
        conversation.hand_down(shared.borrow_and_update().evidence.clone());
        let newest = published.borrow_and_update().clone();
        if let Some(update) = newest.and_then(|newest| conversation.next(&newest)) {
            agents.counters.sent(&update);
            for part in update.parts(PART_BYTES) {
                if updates.send(Ok(part)).await.is_err() {
                    return Ok(());
                }
            }
        }
        tokio::select! {
            message = from_agent.message() => match message? {
                Some(message) => answer(conversation.take(message)?, &agent, on_report),
                None => return Ok(()),
            },
            changed = published.changed() => if changed.is_err() {
                return Ok(());
            },
            changed = shared.changed() => if changed.is_err() {
                return Ok(());
            },
            () = updates.closed() => return Ok(()),
        }
    }
}

/// Notes down what an agent has answered, and tells of it.
fn answer(answer: Answer, agent: &Connected, on_report: &OnReport) {
    match answer {
        Answer::Acked { revision, sent } => agent.acked(revision, &sent),
        Answer::Rejected { revision, sent, errors } => {
            for (key, message) in &errors {
                let (node, key) = (agent.node().to_owned(), key.to_string());
                on_report(Report::Rejected { node, key, message: message.clone() });
            }
            agent.rejected(revision, &sent, errors);
        }
        Answer::Reported(report) => return agent.reported(report),
        Answer::Heard => return,
    }
    let (revision, agents, total) = agent.in_force();
    on_report(Report::InForce { revision, agents, total });
}

/// What has been said on one stream, as a state machine.
#[derive(Debug, Default)]
pub struct Conversation {
    /// Whose agent it is.
    node: String,
    /// What the agent has, or was sent; what it has rejected too, for the same again would be rejected again.
    base: Base,
    /// What is to be handed down of what all agents see, and what was.
    evidence: (Bytes, Bytes),
    /// The update that has not been answered yet.
    under_way: Option<UnderWay>,
}

/// An update that has not been answered yet.
#[derive(Debug)]
struct UnderWay {
    revision: u64,
    /// What it was about.
    about: Vec<Key>,
    /// It brings evidence, and nothing that could be put in force.
    is_evidence: bool,
}

/// What a message from an agent means.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// All of the update is in force there.
    Acked {
        /// Its revision.
        revision: u64,
        /// What it was about.
        sent: Vec<Key>,
    },
    /// All of it is in force but these.
    Rejected {
        /// Its revision.
        revision: u64,
        /// What it was about.
        sent: Vec<Key>,
        /// What could not be used, and why.
        errors: Vec<(Key, String)>,
    },
    /// What it sees.
    Reported(v1::Report),
    /// It has taken in what all see. That puts nothing in force.
    Heard,
}

impl Conversation {
    /// Begins with what the agent holds.
    ///
    /// # Errors
    /// When the agent names something that is no resource.
    pub fn new(hello: v1::Hello) -> Result<Self, Status> {
        let held = hello.held.into_iter().map(|held| {
            let key = held.key.and_then(Key::from_wire);
            key.map(|key| (key, held.version)).ok_or_else(|| Status::invalid_argument("Hello names no resource"))
        });
        Ok(Self { node: hello.node, base: Base::Held(held.collect::<Result<_, _>>()?), ..Self::default() })
    }

    /// What all agents see is now this, encoded: it goes out with the next update, or as one.
    pub fn hand_down(&mut self, evidence: Bytes) {
        self.evidence.0 = evidence;
    }

    /// The update to send now: none while one is under way or the agent has the newest. The first may be empty, so that
    /// the agent's answer tells what is in force there.
    pub fn next(&mut self, newest: &Arc<Snapshot>) -> Option<v1::Update> {
        let has_newest = matches!(&self.base, Base::Sent(sent) if sent.revision() == newest.revision());
        let (wanted, sent) = &mut self.evidence;
        let evidence = (wanted != sent).then(|| wanted.clone());
        if self.under_way.is_some() || (has_newest && evidence.is_none()) {
            return None;
        }
        sent.clone_from(wanted);
        let Delta { mut update, about } = newest.delta(&self.node, &self.base);
        update.evidence = evidence;
        self.base = Base::Sent(newest.clone());
        self.under_way = Some(UnderWay { revision: update.revision, about, is_evidence: has_newest });
        Some(update)
    }

    /// Takes a message from the agent in.
    ///
    /// # Errors
    /// When the message makes no sense here; the stream ends.
    pub fn take(&mut self, message: v1::AgentMessage) -> Result<Answer, Status> {
        match message.message {
            Some(Message::Ack(ack)) => {
                let UnderWay { revision, about: sent, is_evidence } = self.finish(ack.revision)?;
                Ok(if is_evidence { Answer::Heard } else { Answer::Acked { revision, sent } })
            }
            Some(Message::Reject(reject)) => {
                let sent = self.finish(reject.revision)?.about;
                let named = |error: v1::ResourceError| Some((Key::from_wire(error.key?)?, error.message));
                let errors = reject.errors.into_iter().map(named).collect::<Option<Vec<_>>>();
                let errors = errors.ok_or_else(|| Status::invalid_argument("Reject names no resource"))?;
                Ok(Answer::Rejected { revision: reject.revision, sent, errors })
            }
            Some(Message::Report(report)) => Ok(Answer::Reported(report)),
            Some(Message::Hello(_)) => Err(Status::invalid_argument("a second Hello")),
            None => Err(Status::invalid_argument("a message of no known kind")),
        }
    }

    fn finish(&mut self, revision: u64) -> Result<UnderWay, Status> {
        match self.under_way.take() {
            Some(under_way) if under_way.revision == revision => Ok(under_way),
            _ => Err(Status::invalid_argument(format!("an answer to revision {revision}, which is not under way"))),
        }
    }
}

#[cfg(test)]
mod tests;
