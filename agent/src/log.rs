//! Where log lines go: standard error, as text; how many, the environment variable SWITCHYARD_LOG says.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What is logged unless SWITCHYARD_LOG says otherwise: warnings, and every change of a circuit.
const DEFAULT: &str = "warn,switchyard_agent=info";

/// Sends log lines to standard error; colours only on a terminal.
pub fn to_stderr() {
    let filter = EnvFilter::try_from_env("SWITCHYARD_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    // An error means that lines go somewhere already.
    let _ = lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init();
}
