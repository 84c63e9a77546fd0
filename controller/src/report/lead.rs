//! Who leads: of several controllers one writes status, the one that holds the Lease.
//!
//! Keeps true: a controller believes that it leads only for as long as nobody else can have taken over. It stops believing when it
//! has not renewed for [`RENEW_WITHIN`]; another takes over when the lease has not changed for [`DURATION`], as that other's own
//! clock counts, so that clocks need not agree (the rule of client-go's leader election).

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::serve::tls::Names;

/// A lease that has not changed for this long is anybody's.
pub const DURATION: Duration = Duration::from_secs(10);
/// A leader that could not renew for this long leads no more.
pub const RENEW_WITHIN: Duration = Duration::from_secs(7);
/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Where the leader is, as the lease says: an annotation of it.
const ADDRESS: &str = "switchyard.dev/address";

/// Who leads, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub identity: String,
    /// Where it serves agents.
    pub address: String,
}

/// Who leads now.
///
/// # Errors
/// When the lease cannot be read.
pub async fn leader(client: &Client, names: &Names) -> anyhow::Result<Option<Standing>> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), &names.namespace);
    let Some(lease) = leases.get_opt(&names.name).await? else { return Ok(None) };
    let address = lease.annotations().get(ADDRESS).cloned();
    let identity = lease.spec.and_then(|spec| spec.holder_identity).filter(|identity| !identity.is_empty());
    Ok(identity.zip(address).map(|(identity, address)| Standing { identity, address }))
}

/// Takes part in the election for as long as anybody listens.
struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    address: String,
    /// What the lease said when it was last seen to change, and when that was.
    seen: Option<(Option<String>, Instant)>,
    renewed: Option<Instant>,
}

/// What a look at the lease says to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// It is ours, free, or its holder has not been heard of for too long.
    Take,
    /// Somebody else leads.
    Leave,
}

/// Takes part in the election; says whether this controller leads. `address` is where others find it when it does.
pub fn elect(client: Client, names: &Names, identity: String, address: String) -> watch::Receiver<bool> {
    let (leads, receiver) = watch::channel(false);
    let mut election = Election {
        leases: Api::namespaced(client, &names.namespace),
        name: names.name.clone(),
        identity,
        address,
        seen: None,
        renewed: None,
    };
    tokio::spawn(async move {
        let mut period = tokio::time::interval(PERIOD);
        while !leads.is_closed() {
            period.tick().await;
            match tokio::time::timeout(PERIOD * 2, election.look()).await.context("the API server does not answer") {
                Ok(Ok(true)) => election.renewed = Some(Instant::now()),
                Ok(Ok(false)) => election.renewed = None,
                Ok(Err(error)) | Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "cannot look at the lease")
                }
            }
            let is_leading = election.renewed.is_some_and(|renewed| renewed.elapsed() < RENEW_WITHIN);
            let is_change = leads.send_if_modified(|leads| std::mem::replace(leads, is_leading) != is_leading);
            if is_change {
                tracing::info!(is_leading, "the lease has changed hands");
            }
        }
        if election.renewed.is_some() {
            // Best effort: who comes next need not wait for the lease to run out.
            let _ = tokio::time::timeout(PERIOD, election.give_back()).await;
        }
    });
    receiver
}

impl Election {
    /// Looks at the lease, and takes or renews it if that is right; whether it is ours now.
    async fn look(&mut self) -> anyhow::Result<bool> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    annotations: Some([(ADDRESS.to_owned(), self.address.clone())].into()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return written(self.leases.create(&PostParams::default(), &lease).await);
        };
        let version = lease.resource_version();
        let spec = lease.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let unchanged = self.seen.as_ref().map(|(_, since)| since.elapsed()).unwrap_or_default();
        if claim(&self.identity, spec.holder_identity.as_deref(), unchanged) == Claim::Leave {
            return Ok(false);
        }
        let mut lease = Lease { spec: Some(self.spec(Some(&spec))), ..lease };
        lease.annotations_mut().insert(ADDRESS.to_owned(), self.address.clone());
        // The resource version makes it fail where somebody was quicker.
        written(self.leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    async fn give_back(&self) -> anyhow::Result<()> {
        if let Some(mut lease) = self.leases.get_opt(&self.name).await?
            && let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.identity))
        {
            spec.holder_identity = None;
            self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity));
        let changes = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: ours.map_or(Some(now.clone()), |spec| spec.acquire_time.clone()),
            renew_time: Some(now),
            lease_transitions: Some(changes + i32::from(before.is_some() && ours.is_none())),
            ..LeaseSpec::default()
        }
    }
}

/// Who may take a lease that this one holds and that has not changed for so long.
fn claim(identity: &str, holder: Option<&str>, unchanged: Duration) -> Claim {
    match holder {
        Some(holder) if holder != identity && !holder.is_empty() && unchanged < DURATION => Claim::Leave,
        _ => Claim::Take,
    }
}

/// Whether what was written holds; somebody who was quicker is no error.
fn written(result: kube::Result<Lease>) -> anyhow::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_its_holder_cannot_believe_in_it_any_more() {
        assert!(RENEW_WITHIN + PERIOD < DURATION, "who leads stops before another begins");
        let soon = Duration::from_secs(1);
        assert_eq!(claim("a", None, soon), Claim::Take);
        assert_eq!(claim("a", Some(""), soon), Claim::Take);
        assert_eq!(claim("a", Some("a"), soon), Claim::Take);
        assert_eq!(claim("a", Some("b"), soon), Claim::Leave);
        assert_eq!(claim("a", Some("b"), DURATION), Claim::Take);
    }
}
