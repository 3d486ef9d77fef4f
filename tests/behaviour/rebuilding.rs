//! `sessions rebuild`: the table and the hashes are lost in mid-traffic, and come back as they would have been.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, SeedableRng};
use redis::aio::MultiplexedConnection;
use serde_json::{Value as Json, json};
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::support::fold::{Update, sessions};
use crate::support::worker::command;
use crate::support::{LONG, Space, Worker, send, stores};

const LANE: (&str, &str) = ("AEGIS_LANES", "sessions");

fn updates(rng: &mut SmallRng, count: usize, now_ms: i64) -> Vec<Update> {
    let update = |n: usize, rng: &mut SmallRng| Update {
        event_id: Uuid::from_u128(rng.random()),
        occurred_at_us: now_ms * 1000 - rng.random_range(0..1_800_000_000),
        session_id: format!("s{}", rng.random_range(0..300)),
        user_id: format!("user {}", rng.random_range(0..3)),
        status: (*["started", "updated", "updated", "ended"].choose(rng).unwrap()).to_owned(),
        seq: rng.random_bool(0.9).then(|| rng.random_range(0..6)),
        state: rng.random_bool(0.6).then(|| json!({ "n": n as u64 })),
    };
    (0..count).map(|n| update(n, rng)).collect()
}

async fn send_all(redis: &mut MultiplexedConnection, stream: &str, updates: &[Update]) {
    let events: Vec<_> = updates.iter().map(Update::event).collect();
    send::many(redis, stream, &send::packed(&events, 1)).await;
}

async fn lose_the_hashes(redis: &mut MultiplexedConnection, space: &Space) {
    let keys: Vec<String> = redis::cmd("KEYS").arg(space.session_key("*")).query_async(redis).await.expect("KEYS");
    if !keys.is_empty() {
        let _: u64 = redis::cmd("DEL").arg(keys).query_async(redis).await.expect("DEL");
    }
}

/// Runs `sessions rebuild` with further arguments; returns what it said as JSON.
fn rebuild(space: &Space, arguments: &[&str]) -> Json {
    let mut settings = space.settings_of("operator");
    settings.push(("AEGIS_DATABASE_URL".to_owned(), space.database_url_of("migrator")));
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let arguments = [&["sessions", "rebuild", "--json"], arguments].concat();
    let output = block_in_place(|| command(&arguments, &settings));
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

async fn everything_is_as_it_should(space: &Space, all: &[Update], seed: u64) {
    let wanted = sessions(all);
    assert_eq!(stores::sessions(&space.database().await).await, wanted, "table, seed {seed}");
    let keys: Vec<_> = wanted.keys().map(|session| space.session_key(session)).collect();
    let hashes = stores::session_hashes(&mut *space.redis().await, &keys).await;
    for ((session, row), hash) in wanted.iter().zip(&hashes) {
        assert_eq!(stores::hash_as_row(hash), Some(row.in_milliseconds()), "hash of {session}, seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_lost_in_mid_traffic_come_back_while_workers_go_on() {
    let seed = std::env::var("AEGIS_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let space = Space::new("rebuild").await;
    let workers = [Worker::start(&space, &[LANE]), Worker::start(&space, &[LANE])];
    let (mut redis, stream) = (space.redis().await, space.stream("sessions"));
    let all = updates(&mut rng, 12_000, send::now_ms());
    send_all(&mut redis, &stream, &all[..6_000]).await;
    // In mid-traffic: more comes in from here on, by another connection.
    let sending = {
        let (space, stream, rest) = (space.clone(), stream.clone(), all[6_000..].to_vec());
        tokio::spawn(async move {
            let mut redis = space.redis().await;
            for part in rest.chunks(100) {
                send_all(&mut redis, &stream, part).await;
            }
        })
    };
    space.administrator().await.batch_execute("TRUNCATE sessions").await.expect("TRUNCATE");
    lose_the_hashes(&mut redis, &space).await;
    rebuild(&space, &[]);
    sending.await.expect("the rest is sent");
    workers[0].settled(&space, &["sessions"], LONG).await;
    everything_is_as_it_should(&space, &all, seed).await;

    // Once more, and nothing is left to change.
    let again = rebuild(&space, &[]);
    assert_eq!(
        (&again["events"], &again["table_changes"], &again["hashes_changed"]),
        (&json!(12_000), &json!(0), &json!(0)),
        "{again}"
    );
    everything_is_as_it_should(&space, &all, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebuilding_never_goes_back_and_raises_no_hash_from_the_dead() {
    let space = Space::new("rebuild_time").await;
    let worker = Worker::start(&space, &[LANE]);
    let (mut redis, stream, now) = (space.redis().await, space.stream("sessions"), send::now_ms());
    let (minute, hour) = (60_000, 3_600_000);
    let update = |session: &str, seq: i64, ago: i64, status: &str| Update {
        event_id: Uuid::from_u128(rand::random()),
        occurred_at_us: (now - ago) * 1000,
        session_id: session.to_owned(),
        user_id: format!("u{seq}"),
        status: status.to_owned(),
        seq: Some(seq),
        state: Some(json!({ "seq": seq })),
    };
    let all = [
        update("open", 1, 23 * hour, "started"),
        update("ended", 1, 30 * minute, "ended"),
        update("long over", 1, 2 * hour, "ended"),
        update("forgotten", 1, 25 * hour, "updated"),
        update("known", 1, 3 * minute, "started"),
        update("known", 2, 2 * minute, "updated"),
    ];
    send_all(&mut redis, &stream, &all).await;
    worker.settled(&space, &["sessions"], LONG).await;
    let wanted = stores::sessions(&space.database().await).await;

    // The update that decides is no longer kept: what the table knows from it stays.
    let database = space.database().await;
    let administrator = space.administrator().await;
    assert_eq!(administrator.execute("DELETE FROM session_events WHERE session_id = 'known' AND seq = 2", &[]).await.unwrap(), 1);
    lose_the_hashes(&mut redis, &space).await;
    let dry = rebuild(&space, &["--dry-run"]);
    assert_eq!((&dry["events"], &dry["table_changes"], &dry["living_sessions"]), (&json!(5), &json!(0), &json!(3)), "{dry}");
    let keys: BTreeSet<String> = redis::cmd("KEYS").arg(space.session_key("*")).query_async(&mut redis).await.unwrap();
    assert!(keys.is_empty(), "a dry run made {keys:?}");
    let one = rebuild(&space, &["--session-id", "known"]);
    assert_eq!((&one["events"], &one["hashes_changed"]), (&json!(1), &json!(1)), "{one}");
    let recent = rebuild(&space, &["--since", "1h"]);
    assert_eq!((&recent["events"], &recent["hashes_changed"]), (&json!(2), &json!(1)), "{recent}");
    assert_eq!(rebuild(&space, &[])["hashes_changed"], 1);
    assert_eq!(stores::sessions(&database).await, wanted);
    let keys: BTreeSet<String> = redis::cmd("KEYS").arg(space.session_key("*")).query_async(&mut redis).await.unwrap();
    assert_eq!(keys, ["ended", "known", "open"].map(|session| space.session_key(session)).into());
    for (session, most) in [("open", hour), ("ended", 30 * minute), ("known", 24 * hour - 2 * minute)] {
        let hash = stores::session_hash(&mut redis, &space.session_key(session)).await;
        assert_eq!(stores::hash_as_row(&hash), Some(wanted[session].in_milliseconds()), "{session}");
        let left: i64 = redis::cmd("PTTL").arg(space.session_key(session)).query_async(&mut redis).await.unwrap();
        assert!(left <= most && left > most - 10 * minute, "{session}: {left} ms left of {most}");
    }

    // Older updates that are still kept do not turn it back, nor does a table that begins anew.
    administrator.batch_execute("DELETE FROM sessions WHERE session_id IN ('open', 'ended')").await.unwrap();
    assert_eq!(rebuild(&space, &["--dry-run"])["table_changes"], 2);
    assert_eq!(rebuild(&space, &[])["table_changes"], 2);
    assert_eq!(stores::sessions(&database).await, wanted);
}
