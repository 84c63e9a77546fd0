//! The services of the demo: two instances of each version, on loopback ports that the system picks.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;

use crate::sample::{self, Identity, Knobs};

/// The Service that all of them belong to.
pub(crate) const SERVICE: &str = "my-service";

/// How many there are.
pub(crate) const COUNT: usize = 4;

/// What they are called, and their versions.
const CAST: [(&str, &str); COUNT] = [("v1-a", "v1"), ("v1-b", "v1"), ("v2-a", "v2"), ("v2-b", "v2")];

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// Its name in the demo's words.
    pub(crate) name: &'static str,
    /// Its version.
    pub(crate) version: &'static str,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// How it behaves, and what it saw.
    pub(crate) knobs: Arc<Knobs>,
}

/// Starts them on a thread of their own, which lasts as long as the process.
///
/// # Errors
/// If there is no port to listen on.
pub(crate) fn start() -> anyhow::Result<[Instance; COUNT]> {
    let mut listeners = Vec::new();
    let mut start = |(name, version)| -> anyhow::Result<Instance> {
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no loopback port to listen on")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let knobs = Arc::new(Knobs::default());
        let identity = Identity { service: SERVICE.to_owned(), version: String::from(version), address };
        listeners.push((listener, identity, Arc::clone(&knobs)));
        Ok(Instance { name, version, address, knobs })
    };
    let [a, b, c, d] = CAST.map(&mut start);
    let instances = [a?, b?, c?, d?];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("samples".to_owned()).spawn(move || {
        runtime.block_on(async {
            for (listener, identity, knobs) in listeners {
                // It cannot fail: it is a listener, it does not block, and there is a runtime.
                if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                    tokio::spawn(sample::serve(listener, identity, knobs));
                }
            }
            std::future::pending::<()>().await;
        });
    })?;
    Ok(instances)
}
