//! `run`: the worker.

use std::process::ExitCode;

use crate::config::Config;
use crate::{app, telemetry};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  aegis-ingest run\n  aegis-ingest run --lanes interactions --http-addr 0.0.0.0:9464\n  AEGIS_LOG_FORMAT=pretty aegis-ingest run\n\n\
Exit status: 0 after SIGTERM or SIGINT; 1 when something must be changed first; 2 for a bad setting; 70 for a bug; 130 after a\nsecond signal."
)]
pub(super) struct Args {}

pub(super) async fn run(config: Config, _args: &Args) -> anyhow::Result<ExitCode> {
    telemetry::log::install(&config.log)?;
    let ending = app::run(config).await?;
    Ok(ExitCode::from(ending.status()))
}
