//! `/healthz`, `/readyz`, `/metrics`: who may see them, and that they tell the truth.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value as Json, json};

use crate::support::proxy::{Mode, Proxy};
use crate::support::space::Stores;
use crate::support::{LONG, SOON, Space, Worker, http, send, servers, until};

#[tokio::test]
async fn anything_else_is_404_and_any_other_method_405() {
    let space = Space::new("endpoints").await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    let ask = async |method: &str, path: &str| http::request(worker.address(), method, path, "").await.expect("an answer").status;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ask("GET", path).await, 200, "{path}");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(ask(method, path).await, 405, "{method} {path}");
        }
    }
    for path in ["/", "/healthz/", "/metrics/x", "/Healthz", "/debug", "/healthzz"] {
        assert_eq!(ask("GET", path).await, 404, "{path}");
    }
    assert_eq!(ask("GET", "/metrics?x=1").await, 200, "a query changes nothing");
    let ready = worker.get("/readyz").await.unwrap();
    let body: Json = serde_json::from_str(&ready.body).expect("JSON");
    assert!(ready.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "{ready:?}");
    for component in ["redis", "database", "chroma"] {
        assert!(body["components"][component].is_string(), "a word for {component}: {body}");
    }
    let metrics = worker.get("/metrics").await.unwrap();
    assert!(metrics.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{:?}", metrics.headers);
}

#[tokio::test]
async fn keys_guard_metrics_and_the_body_of_readyz() {
    let space = Space::new("api_keys").await;
    let worker = Worker::start(&space, &[("AEGIS_API_KEYS", "first-key-1,second-key-2")]);
    worker.ready().await;
    let ask = async |path: &str, header: &str| http::request(worker.address(), "GET", path, header).await.expect("an answer");
    for header in [
        "X-API-Key: first-key-1\r\n",
        "x-api-key: second-key-2\r\n",
        "Authorization: Bearer second-key-2\r\n",
        "authorization: bearer first-key-1\r\n",
    ] {
        assert_eq!(ask("/metrics", header).await.status, 200, "{header}");
        let ready = ask("/readyz", header).await;
        assert!(ready.status == 200 && ready.body.contains("redis"), "{header}: {ready:?}");
    }
    for header in [
        "",
        "X-API-Key: first-key-2\r\n",
        "X-API-Key: \r\n",
        "X-API-Key: first-key-1,second-key-2\r\n",
        "X-API-Key: first-key\r\n",
        "Authorization: Basic first-key-1\r\n",
        "Authorization: first-key-1\r\n",
        "Authorization: Bearer\r\n",
        "Cookie: X-API-Key=first-key-1\r\n",
    ] {
        let refused = ask("/metrics", header).await;
        assert!(refused.status == 401 && !refused.body.contains("aegis_"), "{header}: {refused:?}");
        let ready = ask("/readyz", header).await;
        assert_eq!((ready.status, ready.body.as_str()), (200, ""), "{header}: the status without the body");
    }
    assert_eq!(ask("/metrics?key=first-key-1", "").await.status, 401, "a key in an address ends in logs");
    assert_eq!(ask("/healthz", "").await.status, 200);
    assert_eq!(http::request(worker.address(), "POST", "/metrics", "").await.unwrap().status, 405);
    assert!(!worker.log().contains("first-key-1"), "a key stands in the log");
}

#[tokio::test]
async fn keys_are_reread_from_their_file_on_sighup() {
    let space = Space::new("keys_reread").await;
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("keys");
    std::fs::write(&file, "old-key-1,both-key-2\n").unwrap();
    let mut worker = Worker::start(&space, &[("AEGIS_API_KEYS_FILE", file.to_str().unwrap())]);
    worker.ready().await;
    let status = async |key: &str| {
        let header = format!("X-API-Key: {key}\r\n");
        http::request(worker.address(), "GET", "/metrics", &header).await.expect("an answer").status
    };
    let found = async || [status("old-key-1").await, status("both-key-2").await, status("new-key-3").await];
    assert_eq!(found().await, [200, 200, 401]);
    std::fs::write(&file, "both-key-2,new-key-3\n").unwrap();
    assert_eq!(found().await, [200, 200, 401], "a file that changes is no word to reread it");
    worker.signal(Signal::HUP);
    until("the new keys", SOON, async || (found().await == [401, 200, 200]).then_some(())).await;
    // What does not serve leaves the keys as they are, and opens nothing.
    std::fs::remove_file(&file).unwrap();
    worker.signal(Signal::HUP);
    until("it to be told", SOON, async || worker.log().contains("the API keys stay as they are").then_some(())).await;
    assert_eq!(found().await, [401, 200, 200]);
    assert_eq!(http::request(worker.address(), "GET", "/metrics", "").await.unwrap().status, 401);
    worker.stop();
    assert!(!worker.log().contains("both-key-2"), "a key stands in the log");
}

/// Each store is taken away and given back, refusing and silent; a lane that does not need it does not mind.
#[tokio::test]
async fn readiness_follows_the_stores_within_seconds() {
    let redis = Proxy::start(servers::redis().port()).await;
    let database = Proxy::start(servers::postgres().port()).await;
    let chroma = Proxy::start(servers::chroma().port()).await;
    let direct = Space::new("readiness").await;
    let (_, name) = direct.database_url.rsplit_once('/').unwrap();
    let stores = Stores {
        redis_url: Some(format!("redis://127.0.0.1:{}", redis.port())),
        database_url: Some(format!("postgres://aegis:aegis@127.0.0.1:{}/{name}", database.port())),
        chroma_url: Some(format!("http://127.0.0.1:{}", chroma.port())),
    };
    let space = Space::with("readiness_proxied", stores).await;
    let all = Worker::start(&space, &[]);
    let vectors_alone = Worker::start(&space, &[("AEGIS_LANES", "embeddings")]);
    all.ready().await;
    vectors_alone.ready().await;
    for (component, proxy) in [("redis", &redis), ("database", &database), ("chroma", &chroma)] {
        for mode in [Mode::Refuse, Mode::Blackhole] {
            let began = Instant::now();
            proxy.set(mode);
            until(&format!("/readyz to tell that {component} is away ({mode:?})"), Duration::from_secs(15), async || {
                (all.get("/readyz").await?.status == 503).then_some(())
            })
            .await;
            let took = began.elapsed();
            let ready = all.get("/readyz").await.unwrap();
            let body: Json = serde_json::from_str(&ready.body).unwrap();
            for other in ["redis", "database", "chroma"] {
                let up = body["components"][other] == "up";
                assert_eq!(up, other != component, "{component} is away ({mode:?}): {body}");
            }
            assert!(took < Duration::from_secs(10), "{component} ({mode:?}): {took:?} until /readyz told");
            assert_eq!(all.metrics().await.find("aegis_component_up", &[("component", component)]), Some(0.0));
            assert_eq!(all.get("/healthz").await.unwrap().status, 200, "alive, whatever else is down");
            if component == "database" {
                assert_eq!(vectors_alone.get("/readyz").await.unwrap().status, 200, "its lanes need no database");
                assert!(!vectors_alone.get("/readyz").await.unwrap().body.contains("database"));
            }
            proxy.set(Mode::Pass);
            let began = Instant::now();
            all.ready().await;
            assert!(began.elapsed() < Duration::from_secs(15), "{component} ({mode:?}): {:?} until ready again", began.elapsed());
            assert_eq!(all.metrics().await.find("aegis_component_up", &[("component", component)]), Some(1.0));
        }
    }
}

/// A store that is killed, and not only cut off.
#[tokio::test]
async fn readiness_follows_a_killed_store() {
    let mut database = std::thread::spawn(servers::OwnPostgres::new).join().unwrap();
    let space = Space::with("killed_store", Stores { database_url: Some(database.url("aegis")), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
    worker.ready().await;
    let mut redis = space.redis().await;
    let event = json!({ "session_id": "s", "user_id": "u" });
    send::json(&mut redis, &space.stream("interactions"), &event).await;
    worker.settled(&space, &["interactions"], SOON).await;
    database.kill();
    until("/readyz to tell", SOON, async || (worker.get("/readyz").await?.status == 503).then_some(())).await;
    send::json(&mut redis, &space.stream("interactions"), &event).await;
    assert_eq!(worker.get("/healthz").await.unwrap().status, 200);
    let database = std::thread::spawn(move || {
        database.start();
        database
    })
    .join()
    .unwrap();
    worker.ready().await;
    worker.settled(&space, &["interactions"], LONG).await;
    assert_eq!(crate::support::stores::count(&space.database().await, "interaction_logs").await, 2);
    drop(database);
}

/// Names and labels of contract.md §7.
#[tokio::test]
async fn every_metric_of_the_contract_is_exported() {
    const LANE_FAMILIES: [(&str, &str); 12] = [
        ("aegis_entries_read_total", "counter"),
        ("aegis_events_written_total", "counter"),
        ("aegis_events_duplicate_total", "counter"),
        ("aegis_events_dead_total", "counter"),
        ("aegis_entries_reclaimed_total", "counter"),
        ("aegis_entries_lost_total", "counter"),
        ("aegis_batch_events", "histogram"),
        ("aegis_write_duration_seconds", "histogram"),
        ("aegis_ingest_latency_seconds", "histogram"),
        ("aegis_stream_length", "gauge"),
        ("aegis_stream_lag", "gauge"),
        ("aegis_stream_pending", "gauge"),
    ];
    const CODES: [&str; 7] =
        ["malformed", "missing_field", "invalid_field", "time_out_of_range", "too_large", "dimension_mismatch", "rejected"];
    let space = Space::new("metrics").await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    // All of them from the start: a rate over a counter that appears with its first error misses that error.
    let metrics = worker.metrics().await;
    for (family, kind) in LANE_FAMILIES {
        assert_eq!(metrics.families.get(family).map(String::as_str), Some(kind), "{family}");
        for lane in ["interactions", "sessions", "embeddings"] {
            let labels = [("lane", lane)];
            match (kind, family) {
                ("histogram", _) => {
                    assert!(metrics.find(&format!("{family}_count"), &labels).is_some(), "{family} {lane}");
                    assert!(metrics.find(&format!("{family}_sum"), &labels).is_some(), "{family} {lane}");
                    assert!(
                        metrics.find(&format!("{family}_bucket"), &[("lane", lane), ("le", "+Inf")]).is_some(),
                        "{family} {lane}"
                    );
                }
                (_, "aegis_events_dead_total") => {
                    for code in CODES {
                        assert_eq!(metrics.find(family, &[("lane", lane), ("code", code)]), Some(0.0), "{family} {lane} {code}");
                    }
                }
                _ => assert!(metrics.find(family, &labels).is_some(), "{family} {lane}"),
            }
        }
    }
    for component in ["redis", "database", "chroma"] {
        assert_eq!(metrics.find("aegis_component_up", &[("component", component)]), Some(1.0));
    }
    assert_eq!(metrics.find("aegis_build_info", &[]), Some(1.0));

    // They count what happened.
    let mut redis = space.redis().await;
    let good = json!({ "session_id": "s", "user_id": "u", "event_id": "01234567-89ab-cdef-0123-456789abcdef", "occurred_at": send::now_ms() });
    let stream = space.stream("interactions");
    send::json(&mut redis, &stream, &json!([good, good, { "session_id": "s" }, 5])).await;
    send::json(&mut redis, &stream, &json!({ "session_id": "s", "user_id": "u" })).await;
    worker.settled(&space, &["interactions"], SOON).await;
    let lane = [("lane", "interactions")];
    until("the gauges to follow", SOON, async || {
        let metrics = worker.metrics().await;
        let gauges = ["aegis_stream_length", "aegis_stream_lag", "aegis_stream_pending"].map(|name| metrics.get(name, &lane));
        (gauges == [2.0, 0.0, 0.0]).then_some(())
    })
    .await;
    let metrics = worker.metrics().await;
    let count = |name| metrics.get(name, &lane);
    assert_eq!(count("aegis_entries_read_total"), 2.0);
    assert_eq!((count("aegis_events_written_total"), count("aegis_events_duplicate_total")), (2.0, 1.0));
    let dead = |code| metrics.get("aegis_events_dead_total", &[("lane", "interactions"), ("code", code)]);
    assert_eq!((dead("missing_field"), dead("malformed")), (1.0, 1.0));
    assert!(
        count("aegis_batch_events_count") >= 1.0 && count("aegis_batch_events_sum") == 3.0,
        "{:?}",
        count("aegis_batch_events_sum")
    );
    assert!(count("aegis_write_duration_seconds_count") >= 1.0);
    assert!(count("aegis_ingest_latency_seconds_count") >= 3.0);
}

#[tokio::test]
async fn entries_that_somebody_trimmed_away_are_counted_as_lost() {
    let space = Space::new("lost").await;
    let mut redis = space.redis().await;
    let stream = space.stream("interactions");
    let _: () = redis::cmd("XGROUP")
        .arg("CREATE")
        .arg(&stream)
        .arg("aegis")
        .arg("0")
        .arg("MKSTREAM")
        .query_async(&mut redis)
        .await
        .unwrap();
    let event = json!({ "session_id": "s", "user_id": "u" });
    for _ in 0..10 {
        send::json(&mut redis, &stream, &event).await;
    }
    let _: u64 = redis::cmd("XTRIM").arg(&stream).arg("MAXLEN").arg(3).query_async(&mut redis).await.unwrap();
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
    worker.ready().await;
    worker.settled(&space, &["interactions"], SOON).await;
    until("the loss to be counted", SOON, async || {
        (worker.metrics().await.get("aegis_entries_lost_total", &[("lane", "interactions")]) == 7.0).then_some(())
    })
    .await;
    assert_eq!(crate::support::stores::count(&space.database().await, "interaction_logs").await, 3);
}
