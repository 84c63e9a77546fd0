//! Controllers among themselves: each that does not lead tells the leader of its agents, so that status counts all of them, and hears
//! from it what all agents together see of instances.
//!
//! Keeps true: what is told is whole each time, so nothing has to be remembered of what was told before but the published routes;
//! a controller that is gone takes its agents off the list, and they count as cut off until they are somewhere again. Whoever tells
//! shows that it has the authority's key, which only controllers can read.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use switchyard_proto::v1;
use switchyard_proto::v1::switchyard_client::SwitchyardClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Status, Streaming};

use crate::correlate::Views;
use crate::object::ServiceKey;
use crate::report::AgentView;
use crate::report::lead::{self, Standing};
use crate::run::Handle;
use crate::serve::agents::{Agents, Others, taken};
use crate::serve::evidence::Shared;
use crate::serve::tls::{Authority, Names};
use crate::snapshot::{Key, Routes};

/// Changes that come within this time of one another are told at once.
const GATHER: Duration = Duration::from_millis(100);

/// The wait before a leader that cannot be reached is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Takes in what another controller tells, until it goes.
pub(super) async fn take(
    agents: &Arc<Agents>,
    mut told: Streaming<v1::RelayMessage>,
) -> Result<v1::RelayReply, Status> {
    let mut teller = Teller { agents: agents.clone(), name: String::new() };
    let mut published = Arc::<Routes>::default();
    while let Some(message) = told.message().await? {
        if message.controller.is_empty() || (!teller.name.is_empty() && teller.name != message.controller) {
            return Err(Status::invalid_argument("a controller tells its name, and always the same"));
        }
        teller.name = message.controller;
        if let Some(routes) = message.published {
            let entry = |p: v1::Published| (ServiceKey { namespace: p.namespace, name: p.name }, (p.version, p.since));
            published = Arc::new(routes.published.into_iter().map(entry).collect());
        }
        let mut views = Views::new();
        let mut view = |state: v1::AgentState| {
            views.insert(state.node.clone(), Arc::new(taken(state.views)));
            let rejected = |error: v1::ResourceError| Some((Key::from_wire(error.key?)?.service, error.message));
            let rejected = state.rejected.into_iter().filter_map(rejected).collect();
            let view = AgentView { node: state.node, published: published.clone(), revision: state.revision, rejected };
            (view.node.clone(), view)
        };
        let others = Others {
            agents: message.agents.into_iter().map(&mut view).collect(),
            published: published.clone(),
            circuits: message.circuits,
            views,
        };
        agents.of_other(&teller.name, Some(others));
    }
    Ok(v1::RelayReply {})
}

/// Takes a controller off the list when it goes, however it goes.
struct Teller {
    agents: Arc<Agents>,
    name: String,
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.agents.of_other(&self.name, None);
    }
}

/// Tells the leader, whoever it is, for as long as there is a controller.
pub async fn run(
    client: Client,
    names: Names,
    identity: String,
    authority: Arc<Authority>,
    handle: Handle,
    leads: watch::Receiver<bool>,
) {
    loop {
        match lead::leader(&client, &names).await {
            Ok(Some(leader)) if leader.identity != identity && !*leads.borrow() => {
                if let Err(error) = tell(&leader, &names, &identity, &authority, &handle, leads.clone()).await {
                    tracing::debug!(error = format!("{error:#}"), leader = leader.identity, "cannot tell the leader");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(error = format!("{error:#}"), "cannot look who leads"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Tells one leader until it goes, or this controller leads itself.
async fn tell(
    leader: &Standing,
    names: &Names,
    identity: &str,
    authority: &Authority,
    handle: &Handle,
    mut leads: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.certificate()))
        .domain_name(format!("{}.{}.svc", names.name, names.namespace));
    let endpoint = Endpoint::from_shared(format!("https://{}", leader.address))?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .tls_config(tls)?;
    let mut client = SwitchyardClient::new(endpoint.connect().await?);
    let (messages, receiver) = mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    let authorization = format!("Bearer {}", authority.shared_secret());
    request.metadata_mut().insert("authorization", authorization.parse()?);
    let mut asking = tonic::Request::new(v1::ShareRequest {});
    asking.metadata_mut().insert("authorization", authorization.parse()?);
    let mut changes = handle.agents().changes();
    let mut known = None;
    let telling = async {
        loop {
            changes.mark_unchanged();
            let routes = handle.routes();
            // The same map for as long as nothing has changed.
            let published = known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &routes)).then(|| to_wire(&routes));
            let (agents, circuits) = handle.agents().to_tell();
            let controller = identity.to_owned();
            messages.send(v1::RelayMessage { controller, agents, published, circuits }).await?;
            known = Some(routes);
            if changes.changed().await.is_err() {
                return anyhow::Ok(());
            }
            tokio::time::sleep(GATHER).await;
        }
    };
    let mut listening = client.clone();
    let hearing = async {
        let mut replies = match listening.share(asking).await {
            Ok(replies) => replies.into_inner(),
            // An older leader tells nothing of this, and all else works.
            Err(status) if status.code() == tonic::Code::Unimplemented => std::future::pending().await,
            Err(status) => return Err(status.into()),
        };
        let _heard = Heard { agents: handle.agents() };
        while let Some(v1::ShareReply { evidence }) = replies.message().await? {
            handle.agents().share(Shared { evidence, is_anothers: true, ..Shared::default() });
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = telling => result,
        result = hearing => result,
        reply = client.relay(request) => reply.map(drop).map_err(Into::into),
        _ = leads.wait_for(|leads| *leads) => Ok(()),
    }
}

/// What the leader told is no more when it cannot be heard any more, however that comes.
struct Heard<'a> {
    agents: &'a Agents,
}

impl Drop for Heard<'_> {
    fn drop(&mut self) {
        self.agents.share(Shared::default());
    }
}

fn to_wire(routes: &Routes) -> v1::PublishedRoutes {
    let entry = |(key, (version, since)): (&ServiceKey, &(String, u64))| v1::Published {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        version: version.clone(),
        since: *since,
    };
    v1::PublishedRoutes { published: routes.iter().map(entry).collect() }
}
