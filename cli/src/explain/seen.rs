//! What the nodes of a cluster see of circuits, as the status of their policies says it: who explains a request for no node in particular
//! must not say of a circuit that it is closed where some node has it open.

use kube::CustomResourceExt as _;
use kube::api::{Api, DynamicObject};
use serde_json::Value;
use switchyard_agent::explain::{Explanation, Seen, Where};
use switchyard_controller::console;
use switchyard_crds::CircuitPolicy;

use crate::cluster::Cluster;

/// Adds it to an explanation. A policy that cannot be read, which takes a right on CircuitPolicies only, is told of.
pub(super) fn tell(cluster: &Cluster, explanation: &mut Explanation) {
    for place in &mut explanation.destinations {
        let Some(policy) = place.circuit.clone() else { continue };
        let Some((namespace, name)) = policy.split_once('/') else { continue };
        let api: Api<DynamicObject> =
            Api::namespaced_with(cluster.client.clone(), namespace, &CircuitPolicy::api_resource());
        match cluster.wait(api.get(name)) {
            Ok(policy) => add(place, policy.data["status"]["circuits"].as_array().map_or(&[], Vec::as_slice)),
            Err(error) => console::say(format_args!("note: circuits of {policy} are not known: {error}")),
        }
    }
}

/// What `status.circuits` says of a destination's instances.
fn add(place: &mut Where, circuits: &[Value]) {
    let service = place.service.rsplit('/').next().unwrap_or_default();
    let of_version = place.version.as_ref().map(|version| format!("{service} {version}"));
    for instance in &mut place.instances {
        let is_of = |circuit: &&Value| match circuit["instance"].as_str() {
            Some(address) => address == instance.address,
            None => {
                circuit["destination"] == service || of_version.as_ref().is_some_and(|v| circuit["destination"] == **v)
            }
        };
        // Open on some nodes and half-open on others: what most say first.
        let nodes = |circuit: &&Value| circuit["nodes"].as_u64().unwrap_or_default();
        let Some(circuit) = circuits.iter().filter(is_of).max_by_key(nodes) else { continue };
        instance.circuit = Some(if circuit["state"] == "HalfOpen" { "half-open" } else { "open" }.into());
        let reason = circuit["reason"].as_str().unwrap_or_default().to_owned();
        instance.seen = Some(Seen { nodes: nodes(&circuit), reason });
    }
}
