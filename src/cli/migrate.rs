//! `migrate`: the schema.

use std::process::ExitCode;

use crate::config::Config;
use crate::timescale::schema;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  aegis-ingest migrate\n  AEGIS_DATABASE_URL=postgres://owner:secret@db/aegis aegis-ingest migrate\n\n\
Any number may run at once. A schema that is newer than this program is left as it is. What is done with rows over the years\n(AEGIS_CHUNK_INTERVAL, AEGIS_RETENTION, AEGIS_COLUMNSTORE_AFTER, AEGIS_AGGREGATES) is brought to the settings each time."
)]
pub(super) struct Args {}

pub(super) async fn run(config: &Config, _args: &Args) -> anyhow::Result<ExitCode> {
    let migrated = schema::migrate(&config.database).await?;
    for migration in &migrated.applied {
        println!("applied {migration}");
    }
    let state = if migrated.applied.is_empty() { "was up to date" } else { "is up to date" };
    println!("The schema {state}: version {}.", migrated.version);
    let width = migrated.policies.iter().map(|line| line.about.len()).max().unwrap_or_default();
    for line in &migrated.policies {
        println!("{:width$}  {}", line.about, line.state);
    }
    Ok(ExitCode::SUCCESS)
}
