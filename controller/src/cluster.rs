//! The controller of a cluster: what the process does beside the loop. Certificates, the webhook, the election, status.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use kube::Client;
use switchyard_controller::console;
use switchyard_controller::report::{lead, write};
use switchyard_controller::run::{Controller, Options, Report, Source};
use switchyard_controller::serve::door::Door;
use switchyard_controller::serve::tls::{self, Authority, Names};
use switchyard_controller::serve::{admin, evidence, relay, webhook};
use tokio::net::TcpListener;

use crate::bind;

/// What only a controller of a cluster is told.
#[derive(Args)]
pub(crate) struct Cluster {
    /// The controller's own namespace: its Lease, its Secret and its agents' ServiceAccount are there
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "switchyard",
        help_heading = "In a cluster"
    )]
    namespace: String,
    /// The name of its Service, its Lease and its webhook; its Secret is NAME-tls and its ConfigMap NAME-ca
    #[arg(long, value_name = "NAME", default_value = "switchyard-controller", help_heading = "In a cluster")]
    name: String,
    /// Who this replica is in the election
    #[arg(long, value_name = "NAME", env = "POD_NAME", help_heading = "In a cluster")]
    identity: Option<String>,
    /// Where the other replicas find this one; without it, where agents connect
    #[arg(long, value_name = "IP", env = "POD_IP", help_heading = "In a cluster")]
    address: Option<IpAddr>,
    /// The ServiceAccount of the agents
    #[arg(long, value_name = "NAME", default_value = "switchyard-agent", help_heading = "In a cluster")]
    agent_service_account: String,
    /// Where the API server asks about objects: POST /validate, with TLS
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15012", help_heading = "In a cluster")]
    webhook: SocketAddr,
    /// A folder with tls.crt and tls.key for the webhook, which somebody else, such as cert-manager, renews and tells the API server of
    #[arg(long, value_name = "DIR", help_heading = "In a cluster")]
    webhook_certificate: Option<PathBuf>,
    /// Where the kubelet asks: /healthz and /readyz; and /metrics, for whoever may read metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15013", help_heading = "In a cluster")]
    health: SocketAddr,
}

/// How long the API server may take to answer at the start, before it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Runs until `shutdown` comes.
pub(crate) async fn run(
    cluster: Cluster,
    agents: TcpListener,
    admin_listener: TcpListener,
    on_report: Box<dyn Fn(Report) + Send + Sync>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let webhook_listener = bind(cluster.webhook, "the API server; choose another address with --webhook").await?;
    let health_listener = bind(cluster.health, "the kubelet; choose another address with --health").await?;
    let client =
        Client::try_default().await.context("there is no cluster to be found: neither KUBECONFIG nor a Pod's")?;
    let names = Names { namespace: cluster.namespace.clone(), name: cluster.name.clone() };
    let controllers = Arc::new(OnceLock::new());
    let door = Door::Tokens {
        client: client.clone(),
        controllers: controllers.clone(),
        account: format!("system:serviceaccount:{}:{}", cluster.namespace, cluster.agent_service_account),
    };
    let agents_account = (cluster.namespace.clone(), cluster.agent_service_account.clone());
    let source = Source::Kubernetes { client: client.clone(), agents: agents_account };
    let controller = Controller::new(Options { source, door, on_report });
    let handle = controller.handle();
    console::say(format_args!(
        "listening agents={} admin={} webhook={} health={}",
        agents.local_addr()?,
        admin_listener.local_addr()?,
        webhook_listener.local_addr()?,
        health_listener.local_addr()?,
    ));
    let mut address = agents.local_addr()?;
    address.set_ip(cluster.address.unwrap_or(address.ip()));
    let identity = cluster.identity.unwrap_or_else(|| format!("{}-{}", cluster.name, std::process::id()));

    let serving = async {
        let authority = Arc::new(authority(&client, &names).await);
        tokio::spawn(tls::publish(
            client.clone(),
            authority.clone(),
            names.clone(),
            cluster.webhook_certificate.is_none(),
        ));
        controllers.get_or_init(|| authority.shared_secret());
        let leads = lead::elect(client.clone(), &names, identity.clone(), address.to_string());
        let relay = relay::run(
            client.clone(),
            names.clone(),
            identity.clone(),
            authority.clone(),
            handle.clone(),
            leads.clone(),
        );
        tokio::spawn(relay);
        tokio::spawn(evidence::run(handle.clone(), leads.clone()));
        tokio::spawn(write::run(client.clone(), handle.clone(), leads, identity));
        let for_agents = tls::accept(agents, tls::server(authority.clone(), &names, b"h2")?);
        let webhook_tls = match &cluster.webhook_certificate {
            Some(folder) => tls::server_with(folder, b"http/1.1")?,
            None => tls::server(authority, &names, b"http/1.1")?,
        };
        let for_webhook = tls::accept(webhook_listener, webhook_tls);
        let webhook = axum::serve(webhook::Handshaken(for_webhook), webhook::router(handle.questions()));
        tokio::select! {
            result = controller.run(for_agents, std::future::pending()) => result,
            result = async { webhook.await } => result.context("the webhook has failed"),
        }
    };
    let pages = axum::serve(admin_listener, admin::router(handle.clone()));
    let health = axum::serve(health_listener, admin::health(handle.clone(), client.clone()));
    tokio::select! {
        result = serving => result,
        result = async { pages.await } => result.context("the admin pages have failed"),
        result = async { health.await } => result.context("the health pages have failed"),
        () = shutdown => Ok(()),
    }
}

/// Nothing can be served without one, and an API server that is away comes back.
async fn authority(client: &Client, names: &Names) -> Authority {
    loop {
        match Authority::of(client, names).await {
            Ok(authority) => return authority,
            Err(error) => tracing::warn!(error = format!("{error:#}"), "no certificates yet; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
