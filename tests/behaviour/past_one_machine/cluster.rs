//! A cluster of three primaries and three replicas: one primary is killed and a range of slots moved while events come in.

use std::time::{Duration, Instant};

use super::load::{Load, SESSIONS};
use super::{say, setting};
use crate::support::cluster::{Cluster, Primaries as _, Sender};
use crate::support::space::Stores;
use crate::support::{LONG, Space, Worker, send, stores, worker};

const PARTITIONS: u16 = 8;

/// Seconds in `make test`; `make cluster` makes it a million events and four workers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_survives_a_failed_primary_and_moving_slots() {
    let events = setting("AEGIS_CLUSTER_EVENTS", 8_000);
    let workers = setting("AEGIS_CLUSTER_WORKERS", 2);
    let (round, packed) = if events > 100_000 { (20_000, 10) } else { (events / 16, 10) };
    let mut cluster = Cluster::start(1, &[]).await;
    let space = Space::with("cluster", Stores { redis_url: Some(cluster.url()), ..Stores::default() }).await;
    cluster.make_users(&space.prefix).await;
    let worker_settings = [("AEGIS_PARTITIONS", "8"), ("AEGIS_CLAIM_IDLE", "3s")];
    let mut workers: Vec<_> = (0..workers).map(|_| Worker::start(&space, &worker_settings)).collect();
    for worker in &workers {
        worker.ready().await;
    }
    let began = Instant::now();
    let mut load = Load::new(&space, PARTITIONS, packed);
    while load.sent < events / 3 {
        load.send(&cluster, round).await;
    }

    // A primary is killed; what it takes until its end is partly lost by Redis itself, when nobody waits for a replica.
    let first = load.stream("interactions", 0);
    let slot = cluster.slot(&first).await.unwrap();
    let unsafe_ids: Vec<_> = (0..2_000_u128).map(|n| uuid::Uuid::from_u128((7 << 100) + n)).collect();
    let careless: Vec<_> = (unsafe_ids.iter())
        .map(|id| send::json_entry(&serde_json::json!({"event_id": id.to_string(), "session_id": "careless", "user_id": "u", "occurred_at": send::now_ms()})))
        .collect();
    let lossy = format!("{}:lossy", space.prefix);
    let lossy_stream = format!("{lossy}:interactions:{{0}}");
    for part in careless.chunks(500) {
        Sender::new().send(&cluster, &lossy_stream, part, false).await;
    }
    let killed = Instant::now();
    let (old, new) = cluster.fail_over(slot).await;
    let promoted = killed.elapsed();
    let kept = stores::length(&mut cluster.connection(&lossy_stream).await, &lossy_stream).await;
    tokio::task::block_in_place(|| cluster.node(old).start());
    while load.sent < 2 * events / 3 {
        load.send(&cluster, round).await;
    }
    cluster.well().await;

    // Slots move, with one of the streams among them; meanwhile events for it come in.
    let moving = load.stream("interactions", 1);
    let slot = cluster.slot(&moving).await.unwrap();
    let from = cluster.owner(slot).await.unwrap();
    let mut to = None;
    for partition in 0..usize::from(PARTITIONS) {
        let owner = cluster.of(&load.stream("interactions", partition)).await.unwrap();
        to = to.or((owner != from).then_some(owner));
    }
    let (moved, ()) =
        tokio::join!(cluster.move_slots(slot..=(slot + 4).min(16_383), to.unwrap(), Duration::from_millis(1500)), async {
            for _ in 0..3 {
                load.send(&cluster, round).await;
            }
        });
    assert!(moved >= 1, "the stream of partition 1 was among the keys that moved");
    assert_eq!(cluster.owner(slot).await, to);
    while load.sent < events {
        load.send(&cluster, round).await;
    }
    // What Redis lost of the hashes when the primary died is made good by the next update of each session.
    load.update_sessions(&cluster, "ended").await;
    load.settled(&cluster, LONG.max(Duration::from_millis(events as u64))).await;
    let took = began.elapsed();
    load.verify(&cluster).await;

    let mut shares = Vec::new();
    for worker in &workers {
        let metrics = worker.metrics().await;
        shares.push(metrics.get("aegis_entries_read_total", &[("lane", "interactions")]) as u64);
    }
    let sum: u64 = shares.iter().sum();
    assert!(shares.iter().all(|share| share * 10 * shares.len() as u64 >= sum), "a worker starves: {shares:?}");
    for stream in load.streams("interactions") {
        let mut redis = cluster.connection(&stream).await;
        let consumers = crate::delivery::kit::consumers(&mut redis, &stream).await;
        assert_eq!(consumers.len(), workers.len(), "each worker reads {stream}: {consumers:?}");
    }
    say(&format!(
        "cluster: {} interactions in {:.1} s through 8 partitions and {} workers; a replica was promoted {:.1} s after its primary {old} was \
         killed ({new} now); {moved} keys moved with their slots; {} entries sent again by the producer; of 2,000 entries that nobody \
         waited for a replica with, Redis lost {}; entries by worker {shares:?}; peak memory {:?} MiB",
        load.sent,
        took.as_secs_f64(),
        shares.len(),
        promoted.as_secs_f64(),
        load.again(),
        2_000 - kept,
        workers.iter().map(|worker| worker.rss_max() >> 20).collect::<Vec<_>>(),
    ));
    for worker in &mut workers {
        worker.stop();
    }
    commands(&cluster, &space, &load).await;
}

/// The other commands on the same cluster.
async fn commands(cluster: &Cluster, space: &Space, load: &Load) {
    let run = |user: &str, arguments: &[&str]| {
        let mut settings = space.settings_of(user);
        settings.push(("AEGIS_PARTITIONS".to_owned(), PARTITIONS.to_string()));
        if user == "administrator" {
            settings[0].1.clone_from(&space.redis_url);
        }
        // Of the database's roles those that `sessions rebuild` and `erase` ask for.
        for (redis_user, role) in [("operator", "migrator"), ("eraser", "eraser")] {
            if redis_user == user {
                settings.push(("AEGIS_DATABASE_URL".to_owned(), space.database_url_of(role)));
            }
        }
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let output = tokio::task::block_in_place(|| worker::command(arguments, &settings));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}\n{text}{error}", output.status);
        text
    };
    let status: serde_json::Value = serde_json::from_str(&run("operator", &["status", "--json"])).unwrap();
    assert_eq!(status["streams"].as_array().unwrap().len(), 24);
    assert_eq!(status["servers"].as_array().unwrap().len(), 3);
    let lengths: u64 = status["streams"].as_array().unwrap().iter().map(|stream| stream["length"].as_u64().unwrap()).sum();
    let mut wanted = 0;
    for lane in ["interactions", "sessions", "embeddings"] {
        wanted += cluster.length(&load.streams(lane)).await;
    }
    assert_eq!(lengths, wanted);
    let checked = run("worker", &["check"]);
    assert!(checked.contains("serves a part of the keys"), "{checked}");
    assert!(run("operator", &["dead", "list", "--lane", "interactions"]).contains("invalid_field"));
    let dead: Vec<_> = load.streams("interactions").iter().map(|stream| format!("{stream}:dead")).collect();
    let letters = cluster.length(&dead).await;
    run("operator", &["dead", "replay", "--all", "--lane", "interactions"]);
    assert_eq!(cluster.length(&dead).await, 0);
    let before = cluster.length(&load.streams("interactions")).await;
    run("administrator", &["produce", "--count", "500"]);
    let after = cluster.length(&load.streams("interactions")).await;
    assert!(after > before, "produce wrote {} entries beside {letters} replayed", after - before);

    // Hashes on every node come back.
    for session in 0..SESSIONS {
        let key = space.session_key(&format!("s{session}"));
        redis::cmd("DEL").arg(&key).exec_async(&mut cluster.connection(&key).await).await.unwrap();
    }
    let rebuilt: serde_json::Value = serde_json::from_str(&run("operator", &["sessions", "rebuild", "--json"])).unwrap();
    assert_eq!(rebuilt["hashes_changed"], SESSIONS, "{rebuilt}");
    load.verify_hashes(cluster).await;

    // A person goes from every node: what was written, and what the replay above put back unread.
    let (erased, beside) = (&load.user(1), &load.user(10));
    let (kept, standing) = (kept(cluster, space, erased).await, standing(cluster, load, erased).await);
    assert!(kept.iter().all(|count| *count > 0) && standing > 0, "there is something to erase: {kept:?}, {standing}");
    let others = self::kept(cluster, space, beside).await;
    // Hashes that no row tells of any more, on every node.
    let strays: Vec<_> = (0..16).map(|n| space.session_key(&format!("stray{n}"))).collect();
    for key in &strays {
        redis::cmd("HSET").arg(key).arg("user_id").arg(erased).exec_async(&mut cluster.connection(key).await).await.unwrap();
    }
    run("eraser", &["erase", "--user-id", erased, "--yes"]);
    assert_eq!((self::kept(cluster, space, erased).await, self::standing(cluster, load, erased).await), ([0; 4], 0));
    for key in &strays {
        let stray = stores::session_hash(&mut cluster.connection(key).await, key).await;
        assert!(stray.is_empty(), "{key} still stands: {stray:?}");
    }
    assert_eq!(self::kept(cluster, space, beside).await, others, "what is somebody else's");
}

/// Rows of the three tables and session hashes of a user.
async fn kept(cluster: &Cluster, space: &Space, user: &str) -> [i64; 4] {
    let database = space.database().await;
    let mut found = [0; 4];
    for (table, found) in ["interaction_logs", "session_events", "sessions"].iter().zip(&mut found) {
        let query = format!("SELECT count(*) FROM {table} WHERE user_id = $1");
        *found = database.query_one(&query, &[&user]).await.unwrap().get(0);
    }
    for session in 0..SESSIONS {
        let key = space.session_key(&format!("s{session}"));
        let hash = stores::session_hash(&mut cluster.connection(&key).await, &key).await;
        found[3] += i64::from(hash.get("user_id").is_some_and(|own| own == user));
    }
    found
}

/// How often a user is named in the streams and in their dead letters.
async fn standing(cluster: &Cluster, load: &Load, user: &str) -> usize {
    // MessagePack, as the load is: a short text behind its length.
    let named = [&[0xa0 | user.len() as u8], user.as_bytes()].concat();
    let mut found = 0;
    for stream in ["interactions", "sessions", "embeddings"].iter().flat_map(|lane| load.streams(lane)) {
        for key in [format!("{stream}:dead"), stream] {
            let mut redis = cluster.connection(&key).await;
            let mut range = redis::cmd("XRANGE");
            let entries: Vec<(String, Vec<Vec<u8>>)> = range.arg(&key).arg("-").arg("+").query_async(&mut redis).await.unwrap();
            let values = entries.iter().flat_map(|(_, fields)| fields);
            found += values.map(|value| value.windows(named.len()).filter(|window| *window == named).count()).sum::<usize>();
        }
    }
    found
}
