//! What the aggregates say, held against what the rows say.

use super::{migrate, owner, run, value};
use crate::support::timeline::data_folder;
use crate::support::worker::command;
use crate::support::{LONG, Space, Worker};

/// Percentiles are within this of the exact ones.
const BOUND: f64 = 0.025;

/// Rows of both sides that are not the same: counts, mean and greatest exactly, percentiles within the bound.
fn differing() -> String {
    let off = |name: &str| {
        format!(
            "(v.latency_ms_{name} IS NULL) <> (e.{name} IS NULL) OR abs(v.latency_ms_{name} - least(greatest(e.{name}, 0.01), 1e9))
                 > {BOUND} * least(greatest(e.{name}, 0.01), 1e9)"
        )
    };
    format!(
        "SELECT count(*) FILTER (WHERE v.events IS DISTINCT FROM e.events OR v.latency_ms_max IS DISTINCT FROM e.greatest
             OR abs(v.latency_ms_mean - e.mean) > 1e-9 * greatest(e.mean, 1) OR {} OR {} OR {}) || ' of ' || count(*)
         FROM interactions_per_minute v FULL JOIN (
             SELECT date_trunc('minute', occurred_at) AS minute, intent, count(*) AS events, max(latency_ms) AS greatest,
                 avg(CASE WHEN latency_ms > 1e9 THEN 1e9 WHEN latency_ms > 0.01 THEN latency_ms WHEN latency_ms >= 0 THEN 0 END) AS mean, percentile_disc(0.5) WITHIN GROUP (ORDER BY latency_ms) AS p50,
                 percentile_disc(0.9) WITHIN GROUP (ORDER BY latency_ms) AS p90, percentile_disc(0.99) WITHIN GROUP (ORDER BY latency_ms) AS p99
             FROM interaction_logs GROUP BY 1, 2) e
         ON v.minute = e.minute AND coalesce(v.intent, '-') = coalesce(e.intent, '-')",
        off("p50"),
        off("p90"),
        off("p99")
    )
}

#[tokio::test]
async fn real_dialogues_are_counted_right_and_percentiles_keep_their_bound() {
    let Some(folder) = data_folder("aggregates") else { return };
    let space = Space::new("aggregates").await;
    migrate(&space, &[("AEGIS_AGGREGATES", "true")]);
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions,sessions")]);
    let producer = space.redis_url_of("producer");
    let settings = [("AEGIS_REDIS_URL", producer.as_str()), ("AEGIS_KEY_PREFIX", &space.prefix)];
    for file in ["dialogues-dev.jsonl.gz", "voice-dev.jsonl.gz"] {
        let path = folder.join(file);
        let arguments = ["produce", "--quiet", "--events-per-entry", "50", "--timeline", path.to_str().unwrap()];
        let output = command(&arguments, &settings);
        assert!(output.status.success(), "{output:?}");
    }
    worker.ready().await;
    worker.settled(&space, &["interactions", "sessions"], LONG).await;
    let database = owner(&space).await;
    assert_eq!(value(&database, "SELECT sum(events) FROM interactions_per_minute").await, "28694");

    let found = value(&database, &differing()).await;
    let rows: u32 = found.strip_prefix("0 of ").unwrap_or_else(|| panic!("differ: {found}")).parse().unwrap();
    assert!(rows > 1_000, "{rows} rows of minutes and intents");
    // The sketch adds up over minutes: the same bound for the whole of the time.
    let whole = "SELECT count(*) FILTER (WHERE v.events <> e.events OR abs(v.latency_ms_p50 - e.p50) > 0.025 * e.p50
            OR abs(v.latency_ms_p90 - e.p90) > 0.025 * e.p90 OR abs(v.latency_ms_p99 - e.p99) > 0.025 * e.p99) || ' of ' || (count(*) > 50)
        FROM interaction_latency('2000-01-01', '2100-01-01') v FULL JOIN (
            SELECT intent, count(*) AS events, percentile_disc(0.5) WITHIN GROUP (ORDER BY latency_ms) AS p50,
                percentile_disc(0.9) WITHIN GROUP (ORDER BY latency_ms) AS p90, percentile_disc(0.99) WITHIN GROUP (ORDER BY latency_ms) AS p99
            FROM interaction_logs GROUP BY 1) e
        ON coalesce(v.intent, '-') = coalesce(e.intent, '-')";
    assert_eq!(value(&database, whole).await, "0 of true");

    let sessions = "SELECT count(*) FILTER (WHERE (v.active_sessions, v.active_users, v.started, v.ended, v.updates) IS DISTINCT FROM
            (e.sessions, e.users, e.started, e.ended, e.updates)) || ' of ' || (count(*) > 60)
        FROM sessions_per_minute v FULL JOIN (
            SELECT date_trunc('minute', occurred_at) AS minute, count(DISTINCT session_id) AS sessions, count(DISTINCT user_id) AS users,
                sum((status = 'started')::int) AS started, sum((status = 'ended')::int) AS ended, count(*) AS updates
            FROM session_events GROUP BY 1) e
        ON v.minute = e.minute";
    assert_eq!(value(&database, sessions).await, "0 of true");
}

/// Nothing that a producer may write breaks the views: the greatest numbers there are, zero, none at all.
#[tokio::test]
async fn the_oddest_latencies_break_nothing() {
    let space = Space::new("aggregates_odd").await;
    migrate(&space, &[("AEGIS_AGGREGATES", "true")]);
    let database = owner(&space).await;
    run(
        &database,
        "INSERT INTO interaction_logs (occurred_at, event_id, session_id, user_id, intent, latency_ms)
         SELECT '2026-01-01 00:00:30+00', gen_random_uuid(), 's', 'u', intent, latency_ms FROM (VALUES
             ('great', 1.7e308), ('great', 1.7e308), ('great', 1e9), ('zero', 0), ('zero', 5e-324), ('none', NULL), (NULL, NULL), (NULL, 3)
         ) AS odd (intent, latency_ms)",
    )
    .await;
    assert_eq!(value(&database, &differing()).await, "0 of 4");
    assert_eq!(value(&database, "SELECT sum(events) FROM interaction_latency('2000-01-01', '2100-01-01')").await, "8");
}
