//! The agent: in the path of the traffic. It routes, breaks circuits and retries as the controller's configuration says.
//!
//! It knows nothing of Kubernetes. `request` is the path of a request, top to bottom; the other modules stand in the order in
//! which a request meets them.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

/// What people and monitoring ask.
pub mod admin;
/// May it be asked?
pub mod admit;
/// Bodies.
pub mod body;
/// Connections that are not HTTP.
pub mod carry;
/// Checks of instances beside the traffic.
pub mod check;
/// Which destination and instance.
pub mod choose;
/// How a try went.
pub mod classify;
/// Reading the time.
pub mod clock;
/// What nodes tell one another of instances.
pub mod evidence;
/// Why a request goes where it goes.
pub mod explain;
/// What a rule does besides.
pub mod filters;
/// One try.
pub mod forward;
/// Bodies on streams of HTTP/2.
pub mod http2;
/// Ids of requests and traces.
pub mod ids;
/// How connections of pods come here.
pub mod intercept;
/// Interim replies.
pub mod interim;
/// Notes about a caller's connection.
pub mod line;
/// Connections from callers.
pub mod listen;
/// Where log lines go.
pub mod log;
/// Which rule.
pub mod matching;
/// How much memory there may be.
pub mod memory;
/// What a proxy sees to in messages.
pub mod message;
/// What is remembered of requests.
pub mod record;
/// Replies of the agent itself.
pub mod refusal;
/// Replies of instances.
pub mod reply;
/// The path of a request.
pub mod request;
/// What the controller sent.
pub mod resources;
/// Once more?
pub mod retry;
/// All of it together.
pub mod run;
/// What outlives a table.
pub mod runtime;
/// When to end.
pub mod signal;
/// What survives a restart.
pub mod state;
/// Who stays in which arm.
pub mod sticky;
/// The stream from the controller.
pub mod subscribe;
/// Configuration as requests use it.
pub mod table;
/// Changes of circuits.
pub mod transitions;
/// After an upgrade.
pub mod tunnel;
/// One thread's part.
pub mod worker;
