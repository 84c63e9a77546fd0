//! The three kinds that users write, as Rust types: their schema, what is valid, and what is said where it is not.
//!
//! Everything is validated with one meaning by the CRD's schema, by `switchyard check` and by the controller: the shape of
//! an object is checked against the very schema that the API server uses, and what no schema can say is in one module.
//! This crate knows nothing of clusters or networks.

/// The rules of the schema beyond the shape.
mod cel;
/// The kind `CircuitPolicy`.
pub mod circuit_policy;
/// What is said of an object.
pub mod findings;
/// Circuits that are held by hand.
pub mod hold;
/// How names are spelt.
pub mod names;
/// A finding as text for people.
pub mod render;
/// The kind `RetryPolicy`.
pub mod retry_policy;
/// The kind `RouteRule`.
pub mod route_rule;
/// The schema of the kinds, as the API server gets it.
pub mod schema;
/// Whether an object has the shape that the schema asks for.
pub mod shape;
/// What a policy is attached to.
pub mod target;
/// What no schema can say.
pub mod validate;
/// Durations, percentages, sizes.
pub mod values;

pub use circuit_policy::{CircuitPolicy, CircuitPolicySpec};
pub use findings::{Finding, ObjectName, Place, Reason, Severity};
pub use retry_policy::{RetryPolicy, RetryPolicySpec};
pub use route_rule::{RouteRule, RouteRuleSpec};
pub use shape::{Custom, parse};
pub use validate::conditions::Conditions;
