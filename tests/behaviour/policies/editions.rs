//! What an edition cannot do is said; what only the Timescale edition does is held against this server all the same.

use std::time::Duration;

use aegis_ingest::timescale::policies::{aggregate_queries, community};
use tokio_postgres::error::SqlState;

use super::{migrate, owner, value};
use crate::support::worker::command;
use crate::support::{SOON, Space, Worker, until};

const ALL_ON: &[(&str, &str)] = &[
    ("AEGIS_RETENTION", "90d"),
    ("AEGIS_MAX_EVENT_AGE", "90d"),
    ("AEGIS_COLUMNSTORE_AFTER", "7d"),
    ("AEGIS_AGGREGATES", "true"),
];

async fn is_apache(database: &tokio_postgres::Client) -> bool {
    value(database, "SELECT current_setting('timescaledb.license', true)").await == "apache"
}

/// Every statement for the Timescale edition.
fn statements() -> Vec<String> {
    let week = Duration::from_hours(7 * 24);
    let mut all = vec![
        community::remove_retention("interaction_logs"),
        community::add_retention("interaction_logs", week),
        community::enable_columnstore("interaction_logs", "occurred_at, event_id"),
        community::remove_columnstore("interaction_logs"),
        community::add_columnstore("interaction_logs", week),
    ];
    for (name, query) in aggregate_queries() {
        all.push(community::create_aggregate(name, query));
    }
    // There is no aggregate to name here; the licence is asked for before the name is looked at.
    all.push(community::remove_refresh("interaction_logs"));
    all.push(community::add_refresh("interaction_logs", "NULL::interval"));
    all.push(community::add_refresh("interaction_logs", "interval '89 days 23:00:00'"));
    all
}

/// The server parses each statement, finds its function by name and arguments, and refuses it for the licence alone.
#[tokio::test]
async fn statements_of_the_timescale_edition_fail_here_for_the_licence_alone() {
    let space = Space::new("editions").await;
    let database = owner(&space).await;
    if !is_apache(&database).await {
        return; // The next test lets it carry them out.
    }
    let line = "\n!!! NOT SHOWN: this machine's TimescaleDB is the Apache edition: columnstore, retention policies and continuous \
                aggregates were parsed and refused for its licence, not carried out !!!\n\n";
    let _ = std::fs::write("/dev/stderr", line);
    let outcome = async |statement: &str| {
        let error = database.batch_execute(statement).await.expect_err(statement);
        (error.code().cloned(), error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default())
    };
    for statement in statements() {
        let (code, message) = outcome(&statement).await;
        assert_eq!(code, Some(SqlState::FEATURE_NOT_SUPPORTED), "{statement}: {message}");
        assert!(message.contains("license"), "{statement}: {message}");
    }
    // What is misspelt would fail otherwise.
    let retention = community::add_retention("interaction_logs", Duration::from_hours(24));
    for (right, wrong) in
        [("drop_after", "drop_later"), ("add_retention_policy", "add_retention"), ("interaction_logs", "no_table")]
    {
        assert_ne!(outcome(&retention.replace(right, wrong)).await.0, Some(SqlState::FEATURE_NOT_SUPPORTED), "{wrong}");
    }
}

/// Where a server has the Timescale edition, jobs and aggregates are there, the second time too, and go again.
#[tokio::test]
async fn the_timescale_edition_gets_its_policies() {
    let space = Space::new("editions_timescale").await;
    let database = owner(&space).await;
    if is_apache(&database).await {
        return; // Said by the test above.
    }
    let jobs = "SELECT string_agg(concat_ws(' ', job_id, proc_name), ', ' ORDER BY job_id) FROM timescaledb_information.jobs WHERE job_id >= 1000";
    let none = value(&database, jobs).await;
    migrate(&space, ALL_ON);
    let on = value(&database, jobs).await;
    for (procedure, times) in [("policy_retention", 3), ("policy_compression", 3), ("policy_refresh_continuous_aggregate", 2)] {
        assert_eq!(on.matches(procedure).count(), times, "{on}");
    }
    migrate(&space, ALL_ON);
    assert_eq!(value(&database, jobs).await, on, "the same jobs");
    assert_eq!(value(&database, "SELECT count(*) FROM timescaledb_information.continuous_aggregates").await, "2");
    migrate(&space, &[]);
    assert_eq!(value(&database, jobs).await, none);
    assert_eq!(value(&database, "SELECT count(*) FROM timescaledb_information.continuous_aggregates").await, "0");
}

/// `migrate`, `check` and the worker's log say what the Apache edition lacks, once; with nothing asked for nobody warns.
#[tokio::test]
async fn what_the_edition_lacks_is_said() {
    let space = Space::new("editions_said").await;
    let database = owner(&space).await;
    if !is_apache(&database).await {
        return;
    }
    let said = migrate(&space, ALL_ON);
    for words in ["dropped by the workers", "no columnstore", "plain views"] {
        assert_eq!(said.matches(words).count(), 1, "{words}:\n{said}");
    }
    let settings = space.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let check = |more: &[(&str, &str)]| {
        let output = command(&["check", "--lanes", "interactions"], &[&settings, more].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let said = check(ALL_ON);
    for words in ["warn  database  columnstore: none", "warn  database  aggregates: plain views", "rows are kept: 90d"] {
        assert_eq!(said.matches(words).count(), 1, "{words}:\n{said}");
    }
    let said = check(&[]);
    assert!(said.contains("AEGIS_RETENTION is never, and the database was migrated with 90d"), "{said}");
    migrate(&space, &[]);
    let said = check(&[]);
    assert!(said.contains("rows are kept: for ever") && !said.contains("warn  database"), "{said}");

    let space = space.with_all_rights();
    let worker = Worker::start(&space, &[ALL_ON, &[("AEGIS_LANES", "interactions")]].concat());
    worker.ready().await;
    let log = until("the schema", SOON, async || Some(worker.log()).filter(|log| log.contains("up to date"))).await;
    for words in ["no columnstore", "no continuous aggregates"] {
        assert_eq!(log.matches(words).count(), 1, "{words}:\n{log}");
    }
}
