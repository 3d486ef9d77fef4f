//! Late events among compressed rows. The Apache edition compresses nothing, so a trigger refuses what TimescaleDB refuses: a
//! COPY whose rows lie among more compressed ones than one transaction may unpack to see whether they are there already.

use serde_json::{Value as Json, json};

use super::{owner, run, value};
use crate::support::{LONG, Space, Worker, send, stores};

/// Events that come twice and late: one row each, none set aside, and the worker does not wait for what never changes.
#[tokio::test]
async fn the_limit_on_unpacking_is_lifted_where_rows_are_brought_in_aside() {
    let space = Space::new("late").await;
    let database = owner(&space).await;
    for (table, columns) in [("interaction_logs", "'s', 'u'"), ("session_events", "'s', 'u', 'started', 1")] {
        run(
            &database,
            &format!(
                "INSERT INTO {table} SELECT now() - interval '3 days', ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, {columns}
                 FROM generate_series(0, 9) AS n;
                 CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF current_setting('timescaledb.max_tuples_decompressed_per_dml_transaction') <> '0' THEN
                         RAISE EXCEPTION 'tuple decompression limit exceeded by operation' USING ERRCODE = 'configuration_limit_exceeded';
                     END IF;
                     RETURN new;
                 END $$;
                 CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"
            ),
        )
        .await;
    }
    let at = value(&database, "SELECT (extract(epoch FROM min(occurred_at)) * 1000000)::int8 FROM interaction_logs").await;
    let at: i64 = at.parse().unwrap();
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions,sessions")]);
    let mut redis = space.redis().await;
    let events: Vec<Json> = (0..100)
        .map(|n| {
            json!({
                "session_id": "s", "user_id": "u", "status": "started", "seq": 1, "event_id": format!("00000000-0000-4000-8000-{n:012}"),
                "occurred_at": crate::support::fold::micros_text(at),
            })
        })
        .collect();
    for lane in ["interactions", "sessions"] {
        send::many(&mut redis, &space.stream(lane), &send::packed(&events, 20)).await;
    }
    worker.settled(&space, &["interactions", "sessions"], LONG).await;
    for (lane, table) in [("interactions", "interaction_logs"), ("sessions", "session_events")] {
        // Ten of the interactions have the very time and id of a row that is there; the session events were made a moment later.
        let found = stores::count(&database, table).await;
        assert_eq!(
            found,
            value(&database, &format!("SELECT count(DISTINCT (occurred_at, event_id)) FROM {table}"))
                .await
                .parse::<i64>()
                .unwrap()
        );
        assert!(found == 100 || (lane == "sessions" && found == 110), "{found} rows of {lane}");
        assert_eq!(stores::dead_letters(&mut redis, &space.dead(lane)).await, []);
    }
    // The limit is back where it was for everything else.
    let metrics = worker.metrics().await;
    assert_eq!(metrics.get("aegis_events_duplicate_total", &[("lane", "interactions")]), 10.0);
}
