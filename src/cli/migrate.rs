//! `migrate`: the schema.

use std::process::ExitCode;

use crate::config::Config;
use crate::timescale::schema;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  aegis-ingest migrate\n  AEGIS_DATABASE_URL=postgres://owner:secret@db/aegis aegis-ingest migrate\n\n\
Any number may run at once. A schema that is newer than this program is left as it is."
)]
pub(super) struct Args {}

pub(super) async fn run(config: &Config, _args: &Args) -> anyhow::Result<ExitCode> {
    let migrated = schema::migrate(&config.database).await?;
    for migration in &migrated.applied {
        println!("applied {migration}");
    }
    let state = if migrated.applied.is_empty() { "was up to date" } else { "is up to date" };
    println!("The schema {state}: version {}.", migrated.version);
    Ok(ExitCode::SUCCESS)
}
