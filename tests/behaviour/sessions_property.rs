//! Sessions converge: whatever the order, the duplicates and the partition, and with two workers at once, table and hash are
//! what the oracle folds.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use uuid::Uuid;

use crate::support::fold::{Update, sessions};
use crate::support::proxy::{Mode, Proxy};
use crate::support::space::Stores;
use crate::support::wait::until_equal;
use crate::support::{LONG, Space, Worker, send, servers, stores};

/// Few of everything, so that there are ties in every part of a version.
fn updates(random: &mut SmallRng, now_ms: i64) -> Vec<Update> {
    let update = |n: u128, random: &mut SmallRng| Update {
        event_id: Uuid::from_u128((u128::from(random.random::<u32>()) << 96) | n),
        occurred_at_us: (now_ms - random.random_range(1..40)) * 1000 + *[0, 0, 1, 999].choose(random).unwrap(),
        session_id: format!("session {}", random.random_range(0..25)),
        user_id: format!("user {}", random.random_range(0..3)),
        status: (*["started", "updated", "updated", "ended"].choose(random).unwrap()).to_owned(),
        seq: random.random_bool(0.9).then(|| random.random_range(0..6)),
        state: random.random_bool(0.6).then(|| json!({ "n": n as u64, "slots": { "a": [random.random_range(0..9)] } })),
    };
    (0..400).map(|n| update(n, random)).collect()
}

async fn converge(seed: u64) {
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let space = Space::new(&format!("converge_{seed}")).await;
    // Small batches meet each other more often.
    let settings = [("AEGIS_LANES", "sessions"), ("AEGIS_PARTITIONS", "2"), ("AEGIS_BATCH_ROWS", "7")];
    let workers = [Worker::start(&space, &settings), Worker::start(&space, &settings)];
    let now_ms = send::now_ms();
    let all = updates(&mut random, now_ms);

    // Each update once or several times, in any order, on either partition, alone or in arrays.
    let mut sent: Vec<&Update> = all.iter().flat_map(|update| std::iter::repeat_n(update, random.random_range(1..4))).collect();
    sent.shuffle(&mut random);
    let mut redis = space.redis().await;
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        let (pack, others) = rest.split_at(random.random_range(1..6).min(rest.len()));
        rest = others;
        let events: Vec<_> = pack.iter().map(|update| update.event()).collect();
        let entries = send::packed(&events, events.len());
        send::many(&mut redis, &space.partition("sessions", random.random_range(0..2)), &entries).await;
    }
    for partition in 0..2 {
        let stream = space.partition("sessions", partition);
        until_equal("the updates to be settled", LONG, Some((0, 0)), async || {
            stores::lag_and_pending(&mut redis, &stream, "aegis").await
        })
        .await;
        assert_eq!(stores::length(&mut redis, &format!("{stream}:dead")).await, 0);
    }

    let wanted = sessions(&all);
    let database = space.database().await;
    assert_eq!(stores::sessions(&database).await, wanted, "table, seed {seed}");
    for (session, row) in &wanted {
        let hash = stores::session_hash(&mut redis, &space.session_key(session)).await;
        assert_eq!(stores::hash_as_row(&hash), Some(row.in_milliseconds()), "hash of {session}, seed {seed}");
        let ttl_ms: i64 = redis::cmd("PTTL").arg(space.session_key(session)).query_async(&mut redis).await.unwrap();
        let most = if row.status == "ended" { 3_600_000 } else { 86_400_000 };
        assert!(
            (1..=most).contains(&ttl_ms) && ttl_ms > most - 300_000,
            "{session} ({}): {ttl_ms} ms left, seed {seed}",
            row.status
        );
    }
    let events: BTreeSet<_> =
        stores::session_events(&database).await.into_iter().map(|row| (row.event_id, row.occurred_at_us)).collect();
    assert_eq!(
        events,
        all.iter().map(|update| (update.event_id, update.occurred_at_us)).collect(),
        "every update is one row, seed {seed}"
    );
    assert_eq!(stores::count(&database, "session_events").await, all.len() as i64, "seed {seed}");
    drop(workers);
}

#[tokio::test]
async fn two_workers_converge_whatever_the_order() {
    // A seed of one's own: AEGIS_TEST_SEED=… cargo test
    let own = std::env::var("AEGIS_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in own.map_or_else(|| vec![1, 2, 3, rand::random_range(4..1_000_000)], |seed| vec![seed]) {
        converge(seed).await;
    }
}

/// A session that was over goes on when a later update says so, and its hash lives long again.
#[tokio::test]
async fn an_ended_session_that_goes_on_has_no_end() {
    let space = Space::new("goes_on").await;
    let worker = Worker::start(&space, &[("AEGIS_LANES", "sessions")]);
    worker.ready().await;
    let mut redis = space.redis().await;
    let stream = space.stream("sessions");
    let now = send::now_ms();
    let event = |seq: i64, status: &str| json!({ "session_id": "s", "user_id": "u", "status": status, "seq": seq, "occurred_at": now + seq });
    send::json(&mut redis, &stream, &event(1, "started")).await;
    send::json(&mut redis, &stream, &event(5, "ended")).await;
    worker.settled(&space, &["sessions"], LONG).await;
    let hash = stores::session_hash(&mut redis, &space.session_key("s")).await;
    assert_eq!((hash["status"].as_str(), hash["ended_at"].clone()), ("ended", (now + 5).to_string()));
    assert!(!hash.contains_key("state"), "no update had a state: {hash:?}");
    send::json(&mut redis, &stream, &event(3, "updated")).await;
    worker.settled(&space, &["sessions"], LONG).await;
    assert_eq!(stores::session_hash(&mut redis, &space.session_key("s")).await, hash, "a late update changes nothing");
    send::json(&mut redis, &stream, &event(7, "updated")).await;
    worker.settled(&space, &["sessions"], LONG).await;
    let hash = stores::session_hash(&mut redis, &space.session_key("s")).await;
    assert!(hash["status"] == "updated" && !hash.contains_key("ended_at"), "{hash:?}");
    let ttl_ms: i64 = redis::cmd("PTTL").arg(space.session_key("s")).query_async(&mut redis).await.unwrap();
    assert!(ttl_ms > 3_600_000, "{ttl_ms}");
    let row = &stores::sessions(&space.database().await).await["s"];
    assert_eq!(
        (row.started_at_us, row.updated_at_us, row.ended_at_us, row.state.as_ref()),
        ((now + 1) * 1000, (now + 7) * 1000, None, None)
    );
}

/// Two workers have written the table, and the one that was first reaches Redis last: its older state must not win the hash.
#[tokio::test]
async fn a_slow_worker_does_not_turn_a_hash_back() {
    let server = std::thread::spawn(servers::OwnRedis::new).join().unwrap();
    let proxy = Proxy::start(server.port()).await;
    let direct = Space::with("slow_worker", Stores { redis_url: Some(server.url()), ..Stores::default() }).await;
    let slow_space = Space { redis_url: format!("redis://127.0.0.1:{}", proxy.port()), ..direct.clone() };
    // Nobody takes over what the slow one holds.
    let settings = [("AEGIS_LANES", "sessions"), ("AEGIS_REDIS_TIMEOUT", "2m"), ("AEGIS_CLAIM_IDLE", "10m")];
    let slow = Worker::start(&slow_space, &settings);
    slow.ready().await;
    let (mut redis, database, locker) = (direct.redis().await, direct.database().await, direct.administrator().await);
    let (stream, key, now) = (direct.stream("sessions"), direct.session_key("s"), send::now_ms());
    let event = |seq: i64, status: &str| json!({ "session_id": "s", "user_id": format!("u{seq}"), "status": status, "seq": seq, "occurred_at": now - 100 + seq, "state": { "seq": seq } });

    // The table is held until Redis is out of the slow worker's reach: it commits, and its hash has to wait.
    locker.batch_execute("BEGIN; LOCK TABLE sessions IN SHARE ROW EXCLUSIVE MODE").await.unwrap();
    send::json(&mut redis, &stream, &event(1, "started")).await;
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'sessions'::regclass";
    until_equal("the slow worker to wait for the table", LONG, 1, async || {
        database.query_one(waits, &[]).await.unwrap().get::<_, i64>(0)
    })
    .await;
    proxy.set(Mode::Blackhole);
    locker.batch_execute("COMMIT").await.unwrap();
    until_equal("its row", LONG, 1, async || stores::count(&database, "sessions").await).await;

    // What the slow one asked Redis for before it was cut off must not be given the next entry.
    until_equal("no worker to wait for entries", LONG, true, async || {
        let clients: String = redis::cmd("INFO").arg("clients").query_async(&mut redis).await.unwrap();
        clients.contains("blocked_clients:0")
    })
    .await;
    let quick = Worker::start(&direct, &settings);
    send::json(&mut redis, &stream, &event(2, "ended")).await;
    let seq = async |redis: &mut redis::aio::MultiplexedConnection| stores::session_hash(redis, &key).await.get("seq").cloned();
    until_equal("the quick worker's hash", LONG, Some("2".to_owned()), async || seq(&mut redis).await).await;
    let before = stores::session_hash(&mut redis, &key).await;
    assert_eq!(stores::pending(&mut redis, &stream, "aegis").await, 1, "the slow one still holds its entry");
    proxy.set(Mode::Pass);
    quick.settled(&direct, &["sessions"], LONG).await;
    assert_eq!(stores::session_hash(&mut redis, &key).await, before);
    let wanted = stores::sessions(&database).await["s"].in_milliseconds();
    assert_eq!((wanted.seq, stores::hash_as_row(&before)), (2, Some(wanted)));
    drop((slow, quick));
}
