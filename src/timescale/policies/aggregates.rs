//! Aggregates by the minute: continuous ones where the edition has them, else plain views of the same names and columns.
//!
//! Percentiles come from a sketch that plain aggregates can keep and that adds up over minutes and intents: counts by
//! logarithmic bucket of latency, as in DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with
//! relative-error guarantees", VLDB 2019). Bucket i holds latencies above γ^(i−1) ms and up to γ^i ms with γ = 1.05, and stands
//! for 2γ^i/(γ+1): within (γ−1)/(γ+1) = 2.44 % of every latency in it. So a percentile is within 2.5 % of the latency that
//! `percentile_disc` finds, for latencies from 0.01 ms to 10^9 ms (11 days). Others count as these bounds (below, as 0 in the
//! mean): no number that a producer may write can overflow a sum or underflow a quotient, which PostgreSQL makes an error.

use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use super::{Edition, Line, Policies, community};

/// Begins the comment of what is ours: a view of the same name that somebody else made is left alone.
const OURS: &str = "aegis-ingest:";

/// What is kept: everything else is computed from these.
const KEPT: [Kept; 2] = [
    Kept {
        name: "interactions_per_minute_sketch",
        comment: "interactions by minute, intent and bucket of latency; bucket i stands for 2 * 1.05^i / 2.05 ms, within 2.5 %",
        source: "interaction_logs",
        query: "SELECT time_bucket('1 minute', occurred_at) AS minute, intent,
                    CASE WHEN latency_ms IS NOT NULL THEN
                        ceil(ln(least(greatest(latency_ms, 0.01), 1e9)) / ln(1.05::double precision))::integer
                    END AS latency_bucket,
                    count(*) AS events,
                    sum(CASE WHEN latency_ms < 0.01 THEN 0 WHEN latency_ms IS NOT NULL THEN least(latency_ms, 1e9) END) AS latency_ms_sum, max(latency_ms) AS latency_ms_max
                FROM interaction_logs GROUP BY 1, 2, 3",
    },
    Kept {
        name: "sessions_per_minute",
        comment: "sessions with an update in the minute, and how many began and ended in it",
        source: "session_events",
        query: "SELECT time_bucket('1 minute', occurred_at) AS minute, count(DISTINCT session_id) AS active_sessions,
                    count(DISTINCT user_id) AS active_users, count(*) FILTER (WHERE status = 'started') AS started,
                    count(*) FILTER (WHERE status = 'ended') AS ended, count(*) AS updates
                FROM session_events GROUP BY 1",
    },
];

struct Kept {
    name: &'static str,
    comment: &'static str,
    source: &'static str,
    query: &'static str,
}

/// On top of the sketch; drawn from it, whatever it is.
const ON_TOP: &str = "interactions_per_minute";
const CREATE_ON_TOP: &str = "
CREATE OR REPLACE VIEW interactions_per_minute AS
SELECT minute, intent, sum(events)::bigint AS events, sum(latency_ms_sum) / nullif(max(timed), 0)::double precision AS latency_ms_mean,
    min(latency_ms) FILTER (WHERE upto >= 0.50 * timed) AS latency_ms_p50,
    min(latency_ms) FILTER (WHERE upto >= 0.90 * timed) AS latency_ms_p90,
    min(latency_ms) FILTER (WHERE upto >= 0.99 * timed) AS latency_ms_p99,
    max(latency_ms_max) AS latency_ms_max
FROM (SELECT minute, intent, events, latency_ms_sum, latency_ms_max, 2 * power(1.05::double precision, latency_bucket) / 2.05 AS latency_ms,
          sum(events) OVER (PARTITION BY minute, intent ORDER BY latency_bucket) AS upto,
          sum(events) FILTER (WHERE latency_bucket IS NOT NULL) OVER (PARTITION BY minute, intent) AS timed
      FROM interactions_per_minute_sketch) AS added_up
GROUP BY minute, intent;
CREATE OR REPLACE FUNCTION interaction_latency(since timestamptz, until timestamptz)
RETURNS TABLE (intent text, events bigint, latency_ms_p50 double precision, latency_ms_p90 double precision, latency_ms_p99 double precision)
LANGUAGE sql STABLE AS $$
SELECT a.intent, sum(a.events)::bigint,
    min(a.latency_ms) FILTER (WHERE a.upto >= 0.50 * a.timed), min(a.latency_ms) FILTER (WHERE a.upto >= 0.90 * a.timed),
    min(a.latency_ms) FILTER (WHERE a.upto >= 0.99 * a.timed)
FROM (SELECT s.intent, sum(s.events) AS events, 2 * power(1.05::double precision, s.latency_bucket) / 2.05 AS latency_ms,
          sum(sum(s.events)) OVER (PARTITION BY s.intent ORDER BY s.latency_bucket) AS upto,
          sum(sum(s.events)) FILTER (WHERE s.latency_bucket IS NOT NULL) OVER (PARTITION BY s.intent) AS timed
      FROM interactions_per_minute_sketch s WHERE s.minute >= since AND s.minute < until
      GROUP BY s.intent, s.latency_bucket) a
GROUP BY a.intent
$$";
const DROP_ON_TOP: &str =
    "DROP FUNCTION IF EXISTS interaction_latency(timestamptz, timestamptz); DROP VIEW IF EXISTS interactions_per_minute";

/// The queries of continuous aggregates, by name.
pub(super) fn queries() -> impl Iterator<Item = (&'static str, &'static str)> {
    KEPT.iter().map(|kept| (kept.name, kept.query))
}

/// What stands under a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Nothing,
    View,
    Continuous,
    SomebodyElses,
}

async fn standing(transaction: &Transaction<'_>, name: &str) -> Result<Standing, tokio_postgres::Error> {
    let query = "
        SELECT coalesce(obj_description(c.oid, 'pg_class'), '') LIKE $2::text || '%' AND c.relkind = 'v',
            EXISTS (SELECT FROM timescaledb_information.continuous_aggregates a JOIN pg_namespace n ON n.nspname = a.view_schema
                    WHERE n.oid = c.relnamespace AND a.view_name = c.relname)
        FROM pg_class c WHERE c.oid = to_regclass($1::text)";
    let found = transaction.query_opt(query, &[&name, &OURS]).await?;
    Ok(match found.map(|row| (row.get(0), row.get(1))) {
        None => Standing::Nothing,
        Some((false, _)) => Standing::SomebodyElses,
        Some((true, false)) => Standing::View,
        Some((true, true)) => Standing::Continuous,
    })
}

/// Runs statements, and takes them back where something depends on what they would drop. Returns whether they are done.
async fn unless_in_use(transaction: &mut Transaction<'_>, statements: &str) -> Result<bool, tokio_postgres::Error> {
    let savepoint = transaction.transaction().await?;
    match savepoint.batch_execute(statements).await {
        Ok(()) => savepoint.commit().await.map(|()| true),
        Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
            savepoint.rollback().await.map(|()| false)
        }
        Err(error) => Err(error),
    }
}

const IN_USE: &str = "other views are made from them";

pub(super) async fn reconcile(
    transaction: &mut Transaction<'_>,
    before: &Policies,
    wanted: &Policies,
    edition: Edition,
) -> Result<Line, tokio_postgres::Error> {
    const ABOUT: &str = "aggregates";
    for name in KEPT.iter().map(|kept| kept.name).chain([ON_TOP]) {
        if standing(transaction, name).await? == Standing::SomebodyElses {
            return Ok(if wanted.aggregates {
                Line::lacks(ABOUT, format!("none: {name} is not this program's and is left alone; rename it, then migrate again"))
            } else {
                Line::is(ABOUT, "none")
            });
        }
    }
    if !wanted.aggregates {
        return Ok(match remove(transaction, before).await? {
            None => Line::is(ABOUT, "none"),
            Some(why) => Line::lacks(ABOUT, format!("they stay, no longer refreshed: {why}")),
        });
    }
    let mut plain = None;
    for kept in &KEPT {
        let stands = standing(transaction, kept.name).await?;
        match (edition, stands) {
            (Edition::Timescale, Standing::View) => {
                if unless_in_use(transaction, &format!("{DROP_ON_TOP}; DROP VIEW {}", kept.name)).await? {
                    create_continuous(transaction, kept).await?;
                } else {
                    plain = Some(format!("{} stays a plain view: {IN_USE}", kept.name));
                }
            }
            (Edition::Timescale, Standing::Continuous) => {}
            (Edition::Timescale, _) => create_continuous(transaction, kept).await?,
            (Edition::Apache, Standing::Continuous) => {
                plain = Some(format!("{} was made by the Timescale edition and is no longer refreshed", kept.name));
            }
            (Edition::Apache, _) => {
                transaction.batch_execute(&format!("CREATE OR REPLACE VIEW {} AS {}", kept.name, kept.query)).await?;
            }
        }
        if edition == Edition::Timescale && standing(transaction, kept.name).await? != Standing::View {
            refresh(transaction, kept.name).await?;
        }
        comment(transaction, kept.name, kept.comment).await?;
        grant(transaction, kept.name, kept.source).await?;
    }
    transaction.batch_execute(CREATE_ON_TOP).await?;
    comment(transaction, ON_TOP, "interactions by minute and intent; percentiles within 2.5 %").await?;
    grant(transaction, ON_TOP, KEPT[0].source).await?;
    Ok(match (edition, plain) {
        (_, Some(why)) => Line::lacks(ABOUT, why),
        (Edition::Apache, None) => (super::lacking(wanted, edition).into_iter())
            .find(|line| line.about == ABOUT)
            .unwrap_or_else(|| Line::is(ABOUT, "plain views")),
        (Edition::Timescale, None) => {
            Line::is(ABOUT, "interactions_per_minute and sessions_per_minute, refreshed each minute; they outlive their rows")
        }
    })
}

async fn create_continuous(transaction: &Transaction<'_>, kept: &Kept) -> Result<(), tokio_postgres::Error> {
    transaction.batch_execute(&community::create_aggregate(kept.name, kept.query)).await
}

/// Dropping a chunk marks its time as changed, and a refresh that reached back so far would find nothing there and empty the
/// aggregate. So it reaches back as far as rows are surely whole and no further: an hour less than the retention, for a refresh
/// under way while a chunk is dropped.
async fn refresh(transaction: &Transaction<'_>, name: &str) -> Result<(), tokio_postgres::Error> {
    // In whole hours, so that it does not differ from one migration to the next.
    let since = "SELECT GREATEST(least(retention, date_trunc('hour', justify_hours(now() - incomplete_before)))
                     - interval '1 hour', interval '10 minutes')::text FROM aegis_policies WHERE incomplete_before IS NOT NULL";
    let since: Option<String> = transaction.query_opt(since, &[]).await?.map(|row| row.get(0));
    let as_it_is = "
        SELECT (j.config->>'start_offset')::interval IS NOT DISTINCT FROM $2::text::interval
        FROM timescaledb_information.jobs j, timescaledb_information.continuous_aggregates a
        WHERE a.view_name = $1::text AND j.proc_name = 'policy_refresh_continuous_aggregate'
            AND j.hypertable_name IN (a.view_name, a.materialization_hypertable_name)";
    match transaction.query_opt(as_it_is, &[&name, &since]).await? {
        Some(row) if row.get(0) => Ok(()),
        _ => {
            let since = since.map_or_else(|| "NULL::interval".to_owned(), |since| format!("interval '{since}'"));
            transaction.batch_execute(&community::remove_refresh(name)).await?;
            transaction.batch_execute(&community::add_refresh(name, &since)).await
        }
    }
}

/// Drops what is ours; what would be lost for good, or is in use, stays. Says why, if something does.
async fn remove(transaction: &mut Transaction<'_>, before: &Policies) -> Result<Option<String>, tokio_postgres::Error> {
    let mut statements = vec![DROP_ON_TOP.to_owned()];
    let mut older = None;
    for kept in &KEPT {
        match standing(transaction, kept.name).await? {
            Standing::Nothing | Standing::SomebodyElses => {}
            Standing::View => statements.push(format!("DROP VIEW {}", kept.name)),
            Standing::Continuous => {
                if before.aggregates {
                    transaction.batch_execute(&community::remove_refresh(kept.name)).await?;
                }
                // Minutes that no row could give again.
                let query = format!(
                    "SELECT coalesce((SELECT min(minute) FROM {}) < (SELECT time_bucket('1 minute', min(occurred_at)) FROM {}), false)",
                    kept.name, kept.source
                );
                if transaction.query_one(&query, &[]).await?.get(0) {
                    older = Some(kept.name);
                }
                statements.push(format!("DROP MATERIALIZED VIEW {}", kept.name));
            }
        }
    }
    if let Some(name) = older {
        return Ok(Some(format!(
            "{name} holds minutes whose rows are gone; DROP MATERIALIZED VIEW {name} CASCADE for whoever wants them gone too"
        )));
    }
    Ok((!unless_in_use(transaction, &statements.join("; ")).await?).then(|| IN_USE.to_owned()))
}

async fn comment(transaction: &Transaction<'_>, name: &str, comment: &str) -> Result<(), tokio_postgres::Error> {
    transaction.batch_execute(&format!("COMMENT ON VIEW {name} IS '{OURS} {comment}'")).await
}

/// Who may read the rows may read what is counted from them.
async fn grant(transaction: &Transaction<'_>, name: &str, source: &str) -> Result<(), tokio_postgres::Error> {
    let readers = "
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = to_regclass($1::text) AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner";
    for row in transaction.query(readers, &[&source]).await? {
        transaction.batch_execute(&format!("GRANT SELECT ON {name} TO {}", row.get::<_, String>(0))).await?;
    }
    Ok(())
}
