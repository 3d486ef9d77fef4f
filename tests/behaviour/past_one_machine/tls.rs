//! A cluster that speaks TLS and knows users with the least rights.

use serde_json::json;

use crate::support::cluster::{Cluster, Primaries as _};
use crate::support::rights::{SECRET, as_user};
use crate::support::servers::free_port;
use crate::support::space::Stores;
use crate::support::{LONG, Space, Worker, send, stores, until_equal, worker};
use crate::tls::{HOST, Pki, Shown, show_redis};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_through_with_the_least_rights() {
    let pki = Pki::new();
    let good = pki.ours.issue(HOST);
    let host = ["--cluster-announce-hostname", HOST, "--cluster-preferred-endpoint-type", "hostname"];
    let mut cluster = Cluster::start(0, &host).await;
    let mut ports = Vec::new();
    for port in cluster.ports() {
        let tls_port = free_port();
        ports.push(tls_port);
        pki.hand_authority_to(cluster.node(port).data());
        let mut plain = cluster.at(port).await.unwrap();
        redis::cmd("CONFIG").arg("SET").arg("cluster-announce-tls-port").arg(tls_port).exec_async(&mut plain).await.unwrap();
        show_redis(cluster.node(port), tls_port, &good, true).await;
    }
    cluster.well().await;
    let nodes: Vec<_> = ports.iter().map(|port| format!("{HOST}:{port}")).collect();
    let space = Space::with("cluster_tls", Stores { redis_url: Some(cluster.url()), ..Stores::default() }).await;
    cluster.make_users(&space.prefix).await;
    let url = |user: &str, password: &str| {
        as_user(&format!("rediss+cluster://{}", nodes.join(",")), &format!("{}-{user}", space.prefix), password)
    };
    let mut settings = pki.settings(Shown::Ours);
    settings.push(("AEGIS_REDIS_URL", url("worker", SECRET)));
    settings.push(("AEGIS_PARTITIONS", "4".to_owned()));
    let borrowed: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut worker = Worker::start(&space, &borrowed);
    worker.ready().await;

    for partition in 0..4 {
        let stream = space.partition("interactions", partition);
        let turn = json!({"session_id": "s", "user_id": "u", "transcript": "hello", "embedding": [1.0, 0.5]});
        let mut redis = cluster.connection(&stream).await;
        send::json(&mut redis, &stream, &turn).await;
        send::json(&mut redis, &stream, &json!({"session_id": "s"})).await;
        let stream = space.partition("sessions", partition);
        let update = json!({"session_id": format!("s{partition}"), "user_id": "u", "status": "started", "seq": 1});
        send::json(&mut cluster.connection(&stream).await, &stream, &update).await;
    }
    let database = space.database().await;
    until_equal("the rows", LONG, (4, 4), async || {
        (stores::count(&database, "interaction_logs").await, stores::count(&database, "session_events").await)
    })
    .await;
    let chroma = space.chroma();
    until_equal("the vectors", LONG, 4, async || stores::record_count(&chroma, &space.collection).await).await;
    for partition in 0..4 {
        let dead = format!("{}:dead", space.partition("interactions", partition));
        until_equal("the dead letter", LONG, 1, async || stores::length(&mut cluster.connection(&dead).await, &dead).await).await;
        let key = space.session_key(&format!("s{partition}"));
        let hash = stores::session_hash(&mut cluster.connection(&key).await, &key).await;
        assert_eq!(hash["status"], "started");
    }
    worker.stop();

    let stores_of = space.settings();
    let ask = |user: &str, password: &str, arguments: &[&str]| {
        let own = url(user, password);
        let mut all: Vec<(&str, &str)> = stores_of.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        all.extend(borrowed.iter().copied());
        all.retain(|(name, _)| *name != "AEGIS_REDIS_URL");
        all.push(("AEGIS_REDIS_URL", &own));
        let output = tokio::task::block_in_place(|| worker::command(arguments, &all));
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), said)
    };
    for arguments in [&["status"][..], &["dead", "list"], &["dead", "replay", "--all"]] {
        let (well, said) = ask("operator", SECRET, arguments);
        assert!(well, "{arguments:?}: {said}");
    }
    let (well, said) = ask("operator", "wrong-password", &["status"]);
    assert!(!well && said.contains("refuses this user") && !said.contains("wrong-password"), "{said}");
}
