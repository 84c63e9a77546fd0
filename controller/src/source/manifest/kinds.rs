//! Which kinds there are. The word before the slash of an `apiVersion` is its group; core kinds have none.

use switchyard_crds::shape::nearest;

use crate::object::Kind;
use crate::source::yaml::Node;

/// The group of our own kinds.
const GROUP: &str = "switchyard.dev";
const VERSION: &str = "switchyard.dev/v1alpha1";

const KINDS: [(&str, &str, Kind); 11] = [
    ("v1", "Namespace", Kind::Namespace),
    ("v1", "Service", Kind::Service),
    ("discovery.k8s.io/v1", "EndpointSlice", Kind::EndpointSlice),
    ("v1", "Pod", Kind::Pod),
    ("apps/v1", "Deployment", Kind::Deployment),
    ("apps/v1", "StatefulSet", Kind::StatefulSet),
    ("apps/v1", "DaemonSet", Kind::DaemonSet),
    ("argoproj.io/v1alpha1", "Rollout", Kind::Rollout),
    (VERSION, "RouteRule", Kind::RouteRule),
    (VERSION, "CircuitPolicy", Kind::CircuitPolicy),
    (VERSION, "RetryPolicy", Kind::RetryPolicy),
];
const OURS: [&str; 3] = ["RouteRule", "CircuitPolicy", "RetryPolicy"];

/// What a document's `apiVersion` and `kind` mean to us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// An object that matters.
    Known(Kind),
    /// An object that matters, written for a version that we do not read; the version that we do.
    OtherVersion(Kind, &'static str),
    /// It claims to be ours, and there is no such kind; what is wrong.
    NoSuchKind(String),
    /// Something else's business; a note.
    Foreign(String),
    /// The same, but for its name, which is nearly one of ours.
    Lookalike(String),
}

/// Sorts a document.
pub(super) fn sort(api_version: &str, kind: &str) -> Sort {
    let group = group(api_version);
    if let Some((version, _, known)) = KINDS.iter().find(|(_, name, _)| *name == kind) {
        let ours = OURS.contains(&kind);
        return match () {
            () if *version == api_version => Sort::Known(*known),
            () if self::group(version) == group => Sort::OtherVersion(*known, version),
            // A group that is misspelt or left out: nobody else's kind is called so there.
            () if ours && (group.is_empty() || nearest(group, &[GROUP]).is_some()) => {
                Sort::OtherVersion(*known, version)
            }
            () => Sort::Foreign(format!("{kind} of {api_version} is not for switchyard; skipped")),
        };
    }
    let meant = nearest(kind, &OURS).map(|name| format!("; did you mean {name}?"));
    if group == GROUP {
        let meant = meant.unwrap_or_else(|| format!("; there are {}", OURS.join(", ")));
        return Sort::NoSuchKind(format!("there is no kind {kind:?} in {GROUP}{meant}"));
    }
    let note = format!("{kind} ({api_version}) is not for switchyard; skipped");
    match meant {
        Some(meant) => Sort::Lookalike(note + &meant),
        None => Sort::Foreign(note),
    }
}

/// Whether a document is a list of objects, as `kubectl get -o yaml` writes them.
pub(super) fn is_list(root: &Node) -> bool {
    let text = |field| root.get(field).and_then(Node::text).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let of_known = |name: &str| KINDS.iter().any(|(v, kind, _)| *kind == name && *v == version);
    (version == "v1" && kind == "List") || kind.strip_suffix("List").is_some_and(of_known)
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_from_their_lookalikes() {
        assert_eq!(sort("switchyard.dev/v1alpha1", "RouteRule"), Sort::Known(Kind::RouteRule));
        assert_eq!(sort("v1", "RouteRule"), Sort::OtherVersion(Kind::RouteRule, VERSION));
        assert_eq!(sort("switchyard.dev/v1", "RetryPolicy"), Sort::OtherVersion(Kind::RetryPolicy, VERSION));
        assert_eq!(sort("switchyard.dev/v1alpha1/x", "RetryPolicy"), Sort::OtherVersion(Kind::RetryPolicy, VERSION));
        assert_eq!(sort("switchyrad.dev/v1alpha1", "RetryPolicy"), Sort::OtherVersion(Kind::RetryPolicy, VERSION));
        assert_eq!(
            sort("discovery.k8s.io/v1beta1", "EndpointSlice"),
            Sort::OtherVersion(Kind::EndpointSlice, "discovery.k8s.io/v1")
        );
        for (version, kind) in
            [("serving.knative.dev/v1", "Service"), ("batch/v1", "Job"), ("example.org/v1", "RetryPolicy")]
        {
            assert!(matches!(sort(version, kind), Sort::Foreign(_)), "{version} {kind}");
        }
        let expected = "there is no kind \"RouteRules\" in switchyard.dev; did you mean RouteRule?";
        assert_eq!(sort(VERSION, "RouteRules"), Sort::NoSuchKind(expected.to_owned()));
    }
}
