//! The composition root: commands, settings, wiring. Nothing imports this module but `main`.
//!
//! A command is one file with a clap struct and a `run`, and one line in [`Command`].

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod config;
mod settings;

use settings::{AgentSettings, ServerSettings};

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
}

/// Runs the command line and maps the outcome to an exit code: 0, 1 for a failure, 2 for a wrong command line.
pub fn main() -> ExitCode {
    let arguments = match config::expand(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error, 2),
    };
    let _cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("orch: {error}");
    ExitCode::from(code)
}
