//! Migrating again, changing a setting, and going back.

use super::{migrate, owner, run, value};
use crate::support::Space;
use crate::support::worker::command;

const ALL_ON: &[(&str, &str)] = &[
    ("AEGIS_CHUNK_INTERVAL", "6h"),
    ("AEGIS_RETENTION", "90d"),
    ("AEGIS_MAX_EVENT_AGE", "90d"),
    ("AEGIS_COLUMNSTORE_AFTER", "7d"),
    ("AEGIS_AGGREGATES", "true"),
];

/// Everything that a migration may touch, as text.
async fn catalogue(database: &tokio_postgres::Client) -> String {
    value(
        database,
        "SELECT concat_ws(E'\\n',
            (SELECT string_agg(concat_ws(' ', hypertable_name, time_interval), ', ' ORDER BY hypertable_name) FROM timescaledb_information.dimensions),
            (SELECT concat_ws(' ', chunk_interval, columnstore_after, retention, aggregates) FROM aegis_policies),
            (SELECT string_agg(concat_ws(' ', viewname, definition), E'\\n' ORDER BY viewname) FROM pg_views WHERE schemaname = 'public'),
            (SELECT string_agg(concat_ws(' ', proc_name, hypertable_name, config), ', ' ORDER BY job_id) FROM timescaledb_information.jobs WHERE job_id >= 1000),
            (SELECT string_agg(proname, ', ' ORDER BY proname) FROM pg_proc WHERE proname LIKE 'aegis%' OR proname = 'interaction_latency'))",
    )
    .await
}

#[tokio::test]
async fn migrating_twice_is_migrating_once_and_a_setting_goes_back() {
    let space = Space::new("policies_twice").await;
    let database = owner(&space).await;
    let at_first = catalogue(&database).await;
    assert!(!at_first.contains("per_minute"), "aggregates are asked for, not given:\n{at_first}");
    let said = migrate(&space, ALL_ON);
    for word in ["6h", "90d", "aggregates"] {
        assert!(said.contains(word), "{said}");
    }
    let on = catalogue(&database).await;
    for word in [
        "interaction_logs 06:00:00",
        "session_events 06:00:00",
        "interactions_per_minute",
        "sessions_per_minute",
        "interaction_latency",
    ] {
        assert!(on.contains(word), "{word}:\n{on}");
    }
    assert_eq!(migrate(&space, ALL_ON).lines().skip(1).collect::<Vec<_>>(), said.lines().skip(1).collect::<Vec<_>>());
    assert_eq!(catalogue(&database).await, on, "the second time nothing changes");
    assert!(migrate(&space, &[]).contains("for ever"));
    assert_eq!(catalogue(&database).await, at_first, "and back");
}

/// Chunks to come span what the setting says; those that are there stay.
#[tokio::test]
async fn the_chunk_interval_is_that_of_chunks_to_come() {
    let space = Space::new("policies_chunks").await;
    let database = owner(&space).await;
    let spans =
        "SELECT string_agg((range_end - range_start)::text, ', ' ORDER BY range_start) FROM timescaledb_information.chunks";
    let insert = async |day: &str| {
        run(&database, &format!("INSERT INTO interaction_logs VALUES ('{day} 13:00+00', gen_random_uuid(), 's', 'u')")).await;
    };
    insert("2026-01-01").await;
    migrate(&space, &[("AEGIS_CHUNK_INTERVAL", "6h")]);
    insert("2026-02-01").await;
    migrate(&space, &[]);
    insert("2026-03-01").await;
    assert_eq!(value(&database, spans).await, "1 day, 06:00:00, 1 day");
}

/// What reads an aggregate keeps it; what has its name and is somebody else's is not touched.
#[tokio::test]
async fn views_that_others_use_or_made_stay() {
    let space = Space::new("policies_in_use").await;
    let database = owner(&space).await;
    migrate(&space, &[("AEGIS_AGGREGATES", "true")]);
    run(&database, "CREATE VIEW board AS SELECT * FROM interactions_per_minute").await;
    let said = migrate(&space, &[]);
    assert!(said.contains("they stay"), "{said}");
    assert_eq!(value(&database, "SELECT count(*) FROM board, sessions_per_minute").await, "0");
    run(&database, "DROP VIEW board").await;
    migrate(&space, &[]);
    let left = "SELECT concat(to_regclass('interactions_per_minute_sketch'), to_regclass('sessions_per_minute'), to_regclass('interactions_per_minute'))";
    assert_eq!(value(&database, left).await, "");

    run(&database, "CREATE VIEW sessions_per_minute AS SELECT 'a team''s own' AS whose").await;
    for settings in [&[("AEGIS_AGGREGATES", "true")][..], &[]] {
        let said = migrate(&space, settings);
        assert_eq!(said.contains("sessions_per_minute is not this program's"), !settings.is_empty(), "{said}");
        assert_eq!(value(&database, "SELECT whose FROM sessions_per_minute").await, "a team's own");
    }
}

/// Who may read the rows may read what is counted from them, also where the right was given later.
#[tokio::test]
async fn readers_of_rows_read_aggregates() {
    let space = Space::new("policies_readers").await;
    let database = owner(&space).await;
    run(&database, "GRANT SELECT ON interaction_logs TO PUBLIC").await;
    migrate(&space, &[("AEGIS_AGGREGATES", "true")]);
    let may = async |name: &str| {
        value(
            &database,
            &format!("SELECT coalesce(array_to_string(relacl, ' ') ~ '(^| )=r', false) FROM pg_class WHERE relname = '{name}'"),
        )
        .await
    };
    assert_eq!(may("interactions_per_minute").await, "t");
    assert_eq!(may("interactions_per_minute_sketch").await, "t");
    assert_eq!(may("sessions_per_minute").await, "f", "session_events is not theirs to read");
    run(&database, "GRANT SELECT ON session_events TO PUBLIC").await;
    migrate(&space, &[("AEGIS_AGGREGATES", "true")]);
    assert_eq!(may("sessions_per_minute").await, "t");
}

/// Settings that contradict each other end the program with one line that says what would do.
#[test]
fn policies_that_do_not_go_together_are_refused() {
    let refused = |settings: &[(&str, &str)], words: &[&str]| {
        let output = command(&["run"], settings);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{settings:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{settings:?}: {word} is missing: {said}");
        }
    };
    refused(
        &[("AEGIS_RETENTION", "90d")],
        &["AEGIS_RETENTION is \"90d\"", "AEGIS_MAX_EVENT_AGE, which is 365d", "AEGIS_MAX_EVENT_AGE=90d"],
    );
    let age = ("AEGIS_MAX_EVENT_AGE", "1d");
    refused(
        &[age, ("AEGIS_RETENTION", "30d"), ("AEGIS_CHUNK_INTERVAL", "31d")],
        &["AEGIS_CHUNK_INTERVAL is \"31d\"", "at most AEGIS_RETENTION, which is 30d"],
    );
    refused(
        &[age, ("AEGIS_RETENTION", "30d"), ("AEGIS_COLUMNSTORE_AFTER", "30d")],
        &["AEGIS_COLUMNSTORE_AFTER is \"30d\"", "less than AEGIS_RETENTION, which is 30d", "never"],
    );
}
