//! The controller: objects in, compiled configuration out to the agents, findings to whoever must know.
//!
//! It knows nothing of how requests are proxied. The modules stand in the order of the flow.

/// The objects, reduced to what is needed of them.
pub mod object;

/// Where objects come from.
pub mod source;

/// What exists now.
pub mod world;

/// From what exists to what agents enforce.
pub mod compile;

/// What there is to send, by version.
pub mod snapshot;

/// What agents see of instances, put together.
pub mod correlate;

/// One stream per agent.
pub mod serve;

/// How rules and policies stand.
pub mod standing;

/// What is told of them in status.
pub mod report;

/// The one loop.
pub mod run;

/// What happens, told on the terminal.
pub mod console;

/// Reads manifests once.
pub mod load;

/// Objects for tests.
#[cfg(test)]
mod samples;

pub use load::{Loaded, load, load_into, load_texts};
