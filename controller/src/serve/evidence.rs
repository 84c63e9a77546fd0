//! What the agents see of instances, put together once a second at most, and handed to whoever hands it down.
//!
//! Keeps true: one controller puts together what all agents see, the one that leads; the others hand down what it tells them, and nothing
//! while they cannot hear it. So all agents are told the same, whichever controller they are connected to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use switchyard_crds::circuit_policy::InstanceStatus;
use tokio::sync::watch;

use crate::correlate::Correlation;
use crate::run::Handle;

/// No more often is anything handed down.
const EVERY: Duration = Duration::from_secs(1);

/// What is known of instances that some nodes see fail.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shared {
    /// What agents are handed down, encoded.
    pub evidence: Bytes,
    /// How many instances that is about.
    pub instances: usize,
    /// What the status of each policy says, where this controller put it together.
    pub shown: BTreeMap<String, Vec<InstanceStatus>>,
    /// Another controller put it together. It is not told to yet another one, so that nothing goes in circles.
    pub is_anothers: bool,
}

/// Puts together what all agents see for as long as this controller leads.
pub async fn run(handle: Handle, mut leads: watch::Receiver<bool>) {
    let agents = handle.agents();
    let mut changes = agents.changes();
    while leads.wait_for(|leads| *leads).await.is_ok() {
        let mut correlation = Correlation::default();
        while *leads.borrow() {
            changes.mark_unchanged();
            let verdict = correlation.look(&agents.instance_views(), Instant::now());
            let is_quiet = verdict.is_quiet();
            let (evidence, instances) = (verdict.evidence.encode_to_vec().into(), verdict.evidence.instances.len());
            agents.share(Shared { evidence, instances, shown: verdict.shown, is_anothers: false });
            tokio::time::sleep(EVERY).await;
            if is_quiet {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    lost = leads.wait_for(|leads| !*leads) => if lost.is_err() { return },
                }
            }
        }
        agents.share(Shared::default());
    }
}
