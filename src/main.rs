//! The program `aegis-ingest`: parse, run, exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    aegis_ingest::cli::main()
}
