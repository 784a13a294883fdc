//! Logging: one subscriber, set up once by `cmd`, text or JSON, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What libraries say below warning is of use only to who asks for it by name.
const QUIET: &str = "openraft=warn";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Human-readable lines, coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sets up logging for the process.
///
/// # Errors
/// When `level` is not a valid filter (`info`, `orch::store=debug,warn`), with the parser's words.
pub fn init(format: Format, level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("{QUIET},{level}")).map_err(|error| format!("log level {level:?}: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().try_init(),
    }
    .map_err(|error| error.to_string())
}
