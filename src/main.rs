//! The `orch` executable: parse, run the command, map the error to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    orch::cmd::main()
}
