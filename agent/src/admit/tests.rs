//! Beside the modules, not in them, as the model check (`agent/tests/model.rs`) compiles those for itself.

mod adaptive;
mod breaker;
mod checks;
mod ejections;
mod others;
mod parity;
