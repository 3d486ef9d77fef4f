//! What becomes of rows over the years: chunk interval, retention, columnstore, aggregates, as the settings say.

mod aggregates;
mod editions;
mod late;
mod retention;
mod settings;

use tokio_postgres::Client;

use crate::support::Space;
use crate::support::worker::command;

/// `aegis-ingest migrate` by the migrator, with these settings; what it said.
fn migrate(space: &Space, settings: &[(&str, &str)]) -> String {
    let url = space.database_url_of("migrator");
    let output = command(&["migrate"], &[&[("AEGIS_DATABASE_URL", url.as_str())], settings].concat());
    assert!(output.status.success(), "migrate with {settings:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A connection with the rights of the tables' owner.
async fn owner(space: &Space) -> Client {
    let client = space.administrator().await;
    run(&client, "SET ROLE aegis_owner").await;
    client
}

/// The one value of a query, as text.
async fn value(database: &Client, query: &str) -> String {
    let rows = database.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let row = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    row.unwrap_or_else(|| "no row".to_owned())
}

async fn run(database: &Client, statements: &str) {
    database.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}
