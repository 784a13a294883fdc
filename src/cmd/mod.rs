//! The composition root: commands, settings, wiring. Nothing imports this module but `main`.
//!
//! A command is one file with a clap struct and a `run`, and one line in [`Command`].

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::rt::{log, memory};

mod admin;
mod agent;
mod certificates;
mod config;
mod cpu;
mod error;
mod eviction;
mod host;
mod image;
mod installed;
mod loopback;
mod node;
mod nodes;
mod notify;
mod run;
mod server;
mod settings;
mod signer;
mod token;
mod tokens;
mod uninstall;

use error::CmdError;
use nodes::NodeCommand;
use settings::{AgentSettings, CommonSettings, LogFormat, ServerSettings};
use tokens::TokenCommand;
use uninstall::UninstallSettings;

/// Kubernetes as one executable.
#[derive(Debug, Parser)]
#[command(name = "orch", version, about, max_term_width = 120, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a control plane and, unless --disable-agent, a node
    Server(ServerSettings),
    /// Run a node of an existing cluster
    Agent(AgentSettings),
    /// Look at, load and remove the images of this node's engine
    Image(image::ImageSettings),
    /// List nodes, and free the name of one
    Node(NodeCommand),
    /// Make, list, delete and change the tokens by which machines join
    Token(TokenCommand),
    /// Remove all that orch made on this machine
    Uninstall(UninstallSettings),
}

/// Runs the command line and maps the outcome to an exit code: 0, 1 for a failure, 2 for a wrong command line,
/// 77 for a node that was removed from its cluster.
pub fn main() -> ExitCode {
    let arguments = match config::expand(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error, 2),
    };
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Command::Server(settings) => daemon(&settings.common.clone(), server::run(settings)),
        Command::Agent(settings) => daemon(&settings.common.clone(), agent::run(settings)),
        Command::Image(settings) => tool(image::run(settings)),
        Command::Node(command) => tool(nodes::run(command)),
        Command::Token(command) => tool(tokens::run(command)),
        Command::Uninstall(settings) => tool(uninstall::run(settings)),
    }
}

/// Runs a daemon to its end.
fn daemon(common: &CommonSettings, life: impl Future<Output = Result<(), CmdError>>) -> ExitCode {
    let format = if common.log_format == LogFormat::Json { log::Format::Json } else { log::Format::Text };
    if let Err(error) = log::init(format, &common.log_level) {
        return fail(&error, 2);
    }
    memory::keep_few_pools();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let outcome = runtime.block_on(life);
    // What hangs in a blocking call must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome.map_or_else(|error| fail(&error.report(), error.exit_code()), |()| ExitCode::SUCCESS)
}

/// Runs a command that does something and ends.
fn tool(work: impl Future<Output = Result<(), CmdError>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome.map_or_else(|error| fail(&error.report(), error.exit_code()), |()| ExitCode::SUCCESS)
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("orch: {error}");
    ExitCode::from(code)
}
