//! `/readyz` follows the truth within seconds and does not flap; `/healthz` is not moved by anything.

use std::time::{Duration, Instant};

use super::kit::throughout;
use crate::support::proxy::{Mode, Proxy};
use crate::support::{LONG, Space, Worker, servers, until};

/// A space with one component behind a proxy.
async fn behind(component: &str) -> (Space, Proxy) {
    let space = Space::new(&format!("ready_{component}")).await;
    let target = match component {
        "redis" => servers::redis().port(),
        "database" => servers::postgres().port(),
        _ => servers::chroma().port(),
    };
    let proxy = Proxy::start(target).await;
    let through = |url: &str| url.replace(&format!(":{target}"), &format!(":{}", proxy.port()));
    let space = match component {
        "redis" => Space { redis_url: through(&space.redis_url), ..space },
        "database" => Space { database_url: through(&space.database_url), ..space },
        _ => Space { chroma_url: through(&space.chroma_url), ..space },
    };
    (space, proxy)
}

async fn status(worker: &Worker, path: &str) -> u16 {
    until("an answer", LONG, async || worker.get(path).await).await.status
}

async fn follows(component: &str, away: Mode) {
    let (space, proxy) = behind(component).await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    proxy.set(away);
    let began = Instant::now();
    until("it to be not ready", Duration::from_secs(10), async || (status(&worker, "/readyz").await == 503).then_some(())).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let body: serde_json::Value = serde_json::from_str(&worker.get("/readyz").await.unwrap().body).unwrap();
    for other in ["redis", "database", "chroma"] {
        let wanted = if other == component { "down" } else { "up" };
        assert_eq!(body["components"][other], wanted, "{body}");
    }
    assert_eq!(worker.metrics().await.get("aegis_component_up", &[("component", component)]), 0.0);
    assert_eq!(status(&worker, "/healthz").await, 200);
    // Down is down until it answers again.
    throughout(Duration::from_secs(3), async || assert_eq!(status(&worker, "/readyz").await, 503)).await;
    proxy.set(Mode::Pass);
    let began = Instant::now();
    until("it to be ready again", Duration::from_secs(10), async || (status(&worker, "/readyz").await == 200).then_some(()))
        .await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    throughout(Duration::from_secs(3), async || assert_eq!(status(&worker, "/readyz").await, 200)).await;
}

#[tokio::test]
async fn it_follows_redis() {
    follows("redis", Mode::Refuse).await;
}

#[tokio::test]
async fn it_follows_the_database() {
    follows("database", Mode::Refuse).await;
}

#[tokio::test]
async fn it_follows_a_database_that_is_silent() {
    follows("database", Mode::Blackhole).await;
}

#[tokio::test]
async fn it_follows_chroma() {
    follows("chroma", Mode::Refuse).await;
}

#[tokio::test]
async fn connections_that_break_once_do_not_turn_it() {
    for component in ["redis", "database", "chroma"] {
        let (space, proxy) = behind(component).await;
        let worker = Worker::start(&space, &[]);
        worker.ready().await;
        for _ in 0..3 {
            proxy.cut();
            throughout(Duration::from_millis(2_500), async || {
                assert_eq!(status(&worker, "/readyz").await, 200, "{component}: a blip\n{}", worker.log());
            })
            .await;
        }
    }
}
