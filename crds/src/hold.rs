//! Circuits that are held by hand: `spec.override` says how, and annotations beside it until when, by whom and why. They are annotations
//! for they are about this one hold, and `kubectl annotate` can set them as well as `switchyard circuits hold`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use crate::circuit_policy::{CircuitPolicy, Override};

/// Until when: a time as RFC 3339 writes it. Without it, until somebody lets go.
pub const UNTIL: &str = "switchyard.dev/hold-until";
/// By whom.
pub const BY: &str = "switchyard.dev/hold-by";
/// Why.
pub const WHY: &str = "switchyard.dev/hold-why";
/// All of them.
pub const ANNOTATIONS: [&str; 3] = [UNTIL, BY, WHY];

/// How a policy's circuits are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Open, else closed.
    pub open: bool,
    /// Agents let go by themselves then.
    pub until: Option<Timestamp>,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
}

impl Hold {
    /// Of a policy that is held. A time that is none is refused before it comes here.
    pub fn of(policy: &CircuitPolicy) -> Option<Self> {
        let open = match policy.spec.hold {
            Override::None => return None,
            Override::ForceOpen => true,
            Override::ForceClosed => false,
        };
        let text = |name: &str| annotation(&policy.metadata, name).unwrap_or_default().to_owned();
        Some(Self { open, until: until(&policy.metadata).and_then(Result::ok), by: text(BY), why: text(WHY) })
    }

    /// Who holds it and why, in one line.
    pub fn note(&self) -> String {
        let by = Some(&self.by).filter(|by| !by.is_empty()).map(|by| format!("by {by}"));
        let why = Some(self.why.clone()).filter(|why| !why.is_empty());
        by.into_iter().chain(why).collect::<Vec<_>>().join(": ")
    }
}

/// Until when a policy's annotations have it held.
///
/// # Errors
/// What is there is no time.
pub fn until(metadata: &ObjectMeta) -> Option<Result<Timestamp, String>> {
    let text = annotation(metadata, UNTIL)?;
    Some(text.parse().map_err(|_| format!("{text:?} is no time such as 2026-11-24T12:00:00Z")))
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn policy(hold: &str, annotations: &serde_json::Value) -> CircuitPolicy {
        let policy = json!({
            "apiVersion": "switchyard.dev/v1alpha1", "kind": "CircuitPolicy",
            "metadata": {"name": "c", "namespace": "shop", "annotations": annotations},
            "spec": {"targetRefs": [{"name": "a"}], "override": hold},
        });
        serde_json::from_value(policy).unwrap()
    }

    #[test]
    fn a_hold_says_how_long_by_whom_and_why() {
        let annotations = json!({UNTIL: "2026-11-24T12:00:00+01:00", BY: "ada", WHY: "a drill"});
        let hold = Hold::of(&policy("ForceOpen", &annotations)).unwrap();
        assert_eq!((hold.open, hold.note()), (true, "by ada: a drill".to_owned()));
        assert_eq!(hold.until.unwrap().to_string(), "2026-11-24T11:00:00Z");
        let hold = Hold::of(&policy("ForceClosed", &json!({WHY: "it is well"}))).unwrap();
        assert_eq!((hold.open, hold.until, hold.note()), (false, None, "it is well".to_owned()));
        assert_eq!(Hold::of(&policy("None", &annotations)), None, "annotations alone hold nothing");
    }
}
