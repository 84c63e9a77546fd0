//! The controller: objects in, compiled configuration out to the agents, findings to whoever must know.
//!
//! It knows nothing of how requests are proxied. The modules stand in the order of the flow.

/// The objects, reduced to what is needed of them.
pub mod object;
/// Where objects come from.
pub mod source;
