//! What was asked of the API server with the rights of the chart's controller, from the audit log.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Cluster;

/// Only the controller's own requests are written down.
pub(super) const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: [\"system:serviceaccount:switchyard:switchyard-controller\"]
- level: None
";

/// Something that can be allowed: a verb on a resource of a group; of a namespace, or of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The group; empty for the core's.
    pub group: String,
    /// The resource, with its subresource if any: `routerules/status`.
    pub resource: String,
    /// The verb.
    pub verb: String,
}

impl Cluster {
    /// The rights that the controller has used: what it asked for and was let. And what it was refused.
    ///
    /// # Panics
    /// When there is no log.
    pub fn audited(&self) -> (BTreeSet<Right>, BTreeSet<Right>) {
        let log = std::fs::read_to_string(self.path("audit.log")).unwrap();
        let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
        // The last line may not be whole yet.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for event in events.filter(|event| event["objectRef"].is_object()) {
            let text = |field: &str| event["objectRef"][field].as_str().unwrap_or_default();
            let resource = [text("resource"), text("subresource")].join("/");
            let right = Right {
                group: text("apiGroup").to_owned(),
                resource: resource.trim_end_matches('/').to_owned(),
                verb: event["verb"].as_str().unwrap_or_default().to_owned(),
            };
            let set = if event["responseStatus"]["code"] == 403 { &mut refused } else { &mut used };
            set.insert(right);
        }
        (used, refused)
    }
}
