//! The cluster that kubectl uses, asked with the user's own rights: everything here is read from the API server, and nothing is asked
//! of controllers or agents by a way of its own.

use std::collections::BTreeSet;
use std::future::Future;

use anyhow::{Context, Result};
use kube::Client;
use switchyard_controller::source::kubernetes::once;
use switchyard_controller::world::World;

/// Which part of a cluster is looked at.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Scope {
    /// The namespace; without it, the one that kubectl uses.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// All namespaces that hold rules or policies.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
}

/// A cluster to ask.
pub(crate) struct Cluster {
    runtime: tokio::runtime::Runtime,
    pub(crate) client: Client,
    default_namespace: String,
}

impl Cluster {
    /// The one that kubectl would use.
    pub(crate) fn connect() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (client, default_namespace) = runtime.block_on(async {
            let config = kube::Config::infer().await.context("there is no cluster to ask: KUBECONFIG names none")?;
            let namespace = config.default_namespace.clone();
            anyhow::Ok((Client::try_from(config)?, namespace))
        })?;
        Ok(Self { runtime, client, default_namespace })
    }

    /// The namespace that kubectl uses.
    pub(crate) fn default_namespace(&self) -> &str {
        &self.default_namespace
    }

    /// Waits for an answer.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The namespaces that are meant.
    pub(crate) fn namespaces(&self, scope: &Scope) -> Result<BTreeSet<String>> {
        if scope.all_namespaces {
            return self.wait(once::namespaces(&self.client));
        }
        Ok([scope.namespace.clone().unwrap_or_else(|| self.default_namespace.clone())].into())
    }

    /// What these namespaces hold, and those that their rules send requests to.
    pub(crate) fn world(&self, namespaces: &BTreeSet<String>) -> Result<World> {
        let mut world = World::default();
        let mut read = BTreeSet::new();
        let mut wanted = namespaces.clone();
        while let Some(namespace) = wanted.pop_first() {
            if !read.insert(namespace.clone()) {
                continue;
            }
            let events = self.wait(once::namespace(&self.client, &namespace));
            let events = match events {
                Ok(events) => events,
                // A namespace that only a destination names: its instances are not known, which is then said of it.
                Err(_) if !namespaces.contains(&namespace) => continue,
                Err(error) => return Err(error.context(format!("namespace {namespace}"))),
            };
            for event in &events {
                world.apply(event);
            }
            wanted.extend(world.namespaces_named().into_iter().filter(|name| !read.contains(name)));
        }
        Ok(world)
    }
}
