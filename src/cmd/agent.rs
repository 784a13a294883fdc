//! `orch agent`: a node of a cluster that runs elsewhere.

use super::error::CmdError;
use super::settings::AgentSettings;

/// Runs until a signal.
///
/// # Errors
/// [`CmdError`], which says what to do.
pub async fn run(settings: AgentSettings) -> Result<(), CmdError> {
    Err(CmdError::Setting(format!("cannot join {}", settings.join)))
}
