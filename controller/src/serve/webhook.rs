//! The admission webhook: at the door, what `check` says in a pull request. The schema has refused already what is wrong by itself and
//! can be told without us; here comes what no schema can tell (an expression that does not compile), which refuses, and what needs
//! other objects (no such Service, a conflict), which warns: the other object may come a moment later.
//!
//! Keeps true: it decides nothing of its own. What it says is what the compiler would say if the object were there.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use switchyard_crds::{CircuitPolicy, Custom, Finding, RetryPolicy, RouteRule, Severity};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::object::Object;

/// An API server cuts a warning off after so many characters.
const WARNING: usize = 256;

/// The largest review that is read, in bytes: an object and its predecessor, each of at most what etcd takes.
const LARGEST: usize = 8 << 20;

/// Asks the loop what would be said of an object if it were there.
pub struct Question {
    /// The object.
    pub object: Object,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Vec<Finding>>,
}

/// Where questions go.
pub type Questions = mpsc::Sender<Question>;

/// The webhook's page.
pub fn router(questions: Questions) -> Router {
    let router = Router::new().route("/validate", post(validate)).with_state(questions);
    router.layer(axum::extract::DefaultBodyLimit::max(LARGEST))
}

async fn validate(State(questions): State<Questions>, Json(review): Json<Value>) -> Json<Value> {
    let request = &review["request"];
    let (object, mut findings) = read(request);
    if let Some(object) = object.filter(|_| !findings.iter().any(Finding::is_error)) {
        let (answer, answered) = oneshot::channel();
        // Where nobody answers, the API server is told what is known without: it may not be kept waiting.
        if questions.send(Question { object, answer }).await.is_ok() {
            findings.extend(answered.await.unwrap_or_default());
        }
    }
    Json(json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": response(request, &findings),
    }))
}

/// The object of a request, where it is of one of our kinds and in order; and what is wrong with it.
fn read(request: &Value) -> (Option<Object>, Vec<Finding>) {
    fn of<K: Custom>(value: &Value, wrap: fn(std::sync::Arc<K>) -> Object) -> (Option<Object>, Vec<Finding>) {
        let (object, findings) = switchyard_crds::parse::<K>(value);
        (object.map(|object| wrap(std::sync::Arc::new(object))), findings)
    }
    let object = &request["object"];
    match request["kind"]["kind"].as_str() {
        // What is deleted, or only marked for it, is nobody's concern here.
        _ if object.is_null() || !object["metadata"]["deletionTimestamp"].is_null() => (None, Vec::new()),
        Some("RouteRule") => of::<RouteRule>(object, Object::RouteRule),
        Some("CircuitPolicy") => of::<CircuitPolicy>(object, Object::CircuitPolicy),
        Some("RetryPolicy") => of::<RetryPolicy>(object, Object::RetryPolicy),
        _ => (None, Vec::new()),
    }
}

/// What the API server is told. A refusal is of the form of its own, so that kubectl says both alike.
fn response(request: &Value, findings: &[Finding]) -> Value {
    let text = |finding: &Finding| match finding.field.as_str() {
        "" => finding.message.clone(),
        field => format!("{field}: {}", finding.message),
    };
    let of = |severity| findings.iter().filter(move |finding| finding.severity == severity);
    let warnings: Vec<String> = of(Severity::Warning).map(|f| text(f).chars().take(WARNING).collect()).collect();
    let errors: Vec<&Finding> = of(Severity::Error).collect();
    let mut response = json!({"uid": request["uid"].as_str().unwrap_or_default(), "allowed": errors.is_empty()});
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    if !errors.is_empty() {
        let cause = |finding: &&Finding| json!({"reason": "FieldValueInvalid", "field": finding.field, "message": finding.message});
        response["status"] = json!({
            "code": 422,
            "reason": "Invalid",
            "message": errors.iter().map(|finding| text(finding)).collect::<Vec<_>>().join("; "),
            "details": {
                "group": request["kind"]["group"], "kind": request["kind"]["kind"], "name": request["object"]["metadata"]["name"],
                "causes": errors.iter().map(cause).collect::<Vec<_>>(),
            },
        });
    }
    response
}

/// Connections after their handshakes, as a server takes them.
pub struct Handshaken(pub ReceiverStream<std::io::Result<TlsStream<TcpStream>>>);

impl axum::serve::Listener for Handshaken {
    type Io = TlsStream<TcpStream>;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        loop {
            match self.0.next().await {
                Some(Ok(stream)) => return (stream, ()),
                Some(Err(_)) => {}
                // Whoever accepts has ended, with the process.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(spec: &Value) -> Value {
        json!({"uid": "7", "kind": {"group": "switchyard.dev", "kind": "RouteRule"}, "object": {
            "apiVersion": "switchyard.dev/v1alpha1", "kind": "RouteRule",
            "metadata": {"name": "r", "namespace": "shop"}, "spec": spec,
        }})
    }

    #[test]
    fn what_is_wrong_by_itself_refuses_and_names_its_field() {
        let spec = json!({"service": "a", "destinations": [{"service": "a"}],
            "matches": [{"path": {"type": "RegularExpression", "value": "/(x"}}]});
        let request = request(&spec);
        let (_, findings) = read(&request);
        let response = response(&request, &findings);
        assert_eq!(response["allowed"], false);
        assert_eq!(response["status"]["details"]["causes"][0]["field"], "spec.matches[0].path.value");
        assert_eq!((&response["status"]["details"]["kind"], &response["uid"]), (&json!("RouteRule"), &json!("7")));
    }

    #[test]
    fn what_needs_others_warns_and_is_cut_to_what_is_taken() {
        let warning = Finding::warning(switchyard_crds::Reason::UnresolvedRef, "spec.service", "x".repeat(400));
        let response = response(&request(&json!({})), &[warning]);
        assert_eq!(response["allowed"], true);
        assert_eq!(response["warnings"][0].as_str().map(str::len), Some(WARNING));
        assert!(response.get("status").is_none());
    }

    #[test]
    fn what_goes_away_is_let_go() {
        let deleted = json!({"uid": "7", "kind": {"kind": "RouteRule"}, "object": null});
        assert!(matches!(read(&deleted), (None, findings) if findings.is_empty()));
    }
}
