//! Who may have a stream. In a cluster an agent shows its ServiceAccount's token, and gets what is for its own node and nothing else.
//!
//! The token must be for us (its audience), of the agents' ServiceAccount, and bound to a Pod on the node that the agent says it is of:
//! the API server looks at all of it (TokenReview) and says which node that is.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// The audience that tokens are for.
pub const AUDIENCE: &str = "switchyard";

/// Where the API server says which node a token is bound to.
const NODE: &str = "authentication.kubernetes.io/node-name";

/// The API server answers within this time.
const REVIEW_WITHIN: Duration = Duration::from_secs(10);

/// Who is let in.
pub enum Door {
    /// Whoever comes: on one machine, with no cluster.
    Open,
    /// Agents that show their token.
    Tokens {
        /// Asks the API server.
        client: Client,
        /// `system:serviceaccount:NAMESPACE:NAME` of the agents.
        account: String,
        /// What other controllers show, once it is known.
        controllers: Arc<OnceLock<String>>,
    },
}

/// Streams that were refused, by reason.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Family<Why, Counter>);

/// Why a stream was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

impl Refusals {
    /// The counters, to be shown.
    pub fn family(&self) -> impl prometheus_client::registry::Metric {
        self.0.clone()
    }

    fn refuse(&self, reason: &'static str, status: Status) -> Status {
        self.0.get_or_create(&Why { reason }).inc();
        tracing::warn!(reason, message = status.message(), "an agent is refused");
        status
    }
}

impl Door {
    /// Lets an agent in; the node that its token is bound to, where tokens are asked for.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn admit(&self, metadata: &MetadataMap, refusals: &Refusals) -> Result<Option<String>, Status> {
        let Self::Tokens { client, account, .. } = self else { return Ok(None) };
        let token = metadata.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let Some(token) = token.filter(|token| !token.trim().is_empty()) else {
            return Err(refusals.refuse("no-token", Status::unauthenticated("an agent must show its token")));
        };
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.trim().to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(client.clone());
        let reviewing = async { reviews.create(&PostParams::default(), &review).await };
        let status = match tokio::time::timeout(REVIEW_WITHIN, reviewing).await {
            Ok(Ok(review)) => review.status.unwrap_or_default(),
            Ok(Err(error)) => {
                let message = format!("the API server cannot say whether the token is good: {error}");
                return Err(refusals.refuse("review-failed", Status::unavailable(message)));
            }
            Err(_) => {
                let message = "the API server does not say whether the token is good";
                return Err(refusals.refuse("review-failed", Status::unavailable(message)));
            }
        };
        verdict(status, account).map(Some).map_err(|(reason, status)| refusals.refuse(reason, status))
    }

    /// Lets another controller in.
    ///
    /// # Errors
    /// When it does not show what only controllers know.
    pub fn admit_controller(&self, metadata: &MetadataMap, refusals: &Refusals) -> Result<(), Status> {
        let wanted = match self {
            Self::Open => None,
            Self::Tokens { controllers, .. } => controllers.get(),
        };
        let shown = metadata.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        // Both are digests: how long a comparison takes tells nothing of use.
        match (wanted, shown) {
            (Some(wanted), Some(shown)) if wanted == shown => Ok(()),
            _ => Err(refusals.refuse("not-a-controller", Status::permission_denied("only a controller relays"))),
        }
    }

    /// Whether an agent may say that it is of this node.
    ///
    /// # Errors
    /// When its token is bound to another.
    pub fn check_node(bound: Option<&str>, said: &str, refusals: &Refusals) -> Result<(), Status> {
        match bound {
            Some(bound) if bound != said => {
                let message = format!("the token is bound to node {bound}, and the agent says it is of {said}");
                Err(refusals.refuse("other-node", Status::permission_denied(message)))
            }
            _ => Ok(()),
        }
    }
}

/// What the API server's answer means: the node, or why not.
fn verdict(
    status: k8s_openapi::api::authentication::v1::TokenReviewStatus,
    account: &str,
) -> Result<String, (&'static str, Status)> {
    let for_us = status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE);
    if status.authenticated != Some(true) || !for_us {
        let why = status.error.unwrap_or_else(|| format!("it is not for the audience {AUDIENCE:?}"));
        return Err(("not-authenticated", Status::unauthenticated(format!("the token is not good: {why}"))));
    }
    let user = status.user.unwrap_or_default();
    let who = user.username.unwrap_or_default();
    if who != account {
        let message = format!("the token is of {who}, and agents are {account}");
        return Err(("not-an-agent", Status::permission_denied(message)));
    }
    let node = user.extra.unwrap_or_default().remove(NODE).and_then(|values| values.into_iter().next());
    node.ok_or_else(|| ("not-bound", Status::permission_denied("the token is not bound to a Pod on a node")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use k8s_openapi::api::authentication::v1::TokenReviewStatus;
    use serde_json::json;

    use super::*;

    const AGENTS: &str = "system:serviceaccount:switchyard:switchyard-agent";

    fn answer(change: impl FnOnce(&mut serde_json::Value)) -> Result<String, &'static str> {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["switchyard"],
            "user": {"username": AGENTS, "extra": {NODE: ["one"]}},
        });
        change(&mut status);
        let status: TokenReviewStatus = serde_json::from_value(status).unwrap();
        verdict(status, AGENTS).map_err(|(reason, _)| reason)
    }

    #[test]
    fn only_an_agents_token_for_us_that_is_bound_to_a_node_is_good() {
        assert_eq!(answer(|_| {}), Ok("one".to_owned()));
        assert_eq!(answer(|s| s["authenticated"] = json!(false)), Err("not-authenticated"));
        assert_eq!(answer(|s| s["audiences"] = json!(["https://kubernetes"])), Err("not-authenticated"));
        assert_eq!(answer(|s| s["audiences"] = json!(null)), Err("not-authenticated"));
        assert_eq!(answer(|s| s["user"]["username"] = json!("system:serviceaccount:a:b")), Err("not-an-agent"));
        assert_eq!(answer(|s| s["user"]["extra"] = json!({})), Err("not-bound"));
    }

    #[test]
    fn a_token_of_one_node_is_no_good_for_another() {
        let refusals = Refusals::default();
        assert!(Door::check_node(Some("one"), "one", &refusals).is_ok());
        assert!(Door::check_node(None, "any", &refusals).is_ok());
        assert!(Door::check_node(Some("one"), "two", &refusals).is_err());
        assert_eq!(refusals.0.get_or_create(&Why { reason: "other-node" }).get(), 1);
    }
}
