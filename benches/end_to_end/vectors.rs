//! Vectors into Chroma: a bare client as the floor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aegis_ingest::event::msgpack::Reader;
use aegis_ingest::event::{Decode as _, Embedding, Judge, Origin, Window};
use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::stage::{Drained, Stage, now_ms};

/// Records a request.
const LOOP: usize = 1_000;
const API: &str = "api/v2/tenants/default_tenant/databases/default_database/collections";

/// A vector with what goes with it.
pub struct Record {
    id: String,
    vector: Vec<u8>,
    document: Option<String>,
    metadata: Value,
}

/// Reads a record out of an event.
pub fn record(event: &[u8]) -> Result<Record> {
    let window = Window::around(now_ms().cast_signed() * 1_000, Duration::from_hours(24), Duration::from_hours(1));
    let mut judge = Judge::new(window);
    let origin = Origin { stream: "aegis:embeddings", ms: 0, seq: 0, index: 0 };
    let event = Embedding::decode(&mut judge, &mut Reader::new(event), &origin).map_err(|fault| anyhow!("{}", fault.reason))?;
    Ok(Record {
        id: event.id.map_or_else(|| event.head.event_id.to_string(), str::to_owned),
        vector: event.embedding.0.to_vec(),
        document: event.document.map(str::to_owned),
        metadata: serde_json::from_slice(event.metadata)?,
    })
}

/// Removes a collection if it is there.
pub fn remove(stage: &Stage, collection: &str) -> Result<()> {
    stage.runtime.block_on(async {
        let answer = client()?.delete(format!("{}/{API}/{collection}", stage.chroma_url())).send().await?;
        let status = answer.status();
        ensure!(status.is_success() || status == reqwest::StatusCode::NOT_FOUND, "Chroma answers {status} to a removal");
        Ok(())
    })
}

/// Records in a collection.
pub fn count(stage: &Stage, collection: &str) -> Result<u64> {
    stage.runtime.block_on(async {
        let base = format!("{}/{API}", stage.chroma_url());
        let answer = client()?.get(format!("{base}/{collection}")).send().await?.error_for_status()?;
        let id = parse(answer).await?["id"].as_str().context("no id")?.to_owned();
        let answer = client()?.get(format!("{base}/{id}/count")).send().await?.error_for_status()?;
        parse(answer).await?.as_u64().context("no count")
    })
}

fn client() -> Result<reqwest::Client> {
    // Never used, but reqwest wants to know whom it could trust.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?)
}

async fn parse(answer: reqwest::Response) -> Result<Value> {
    Ok(serde_json::from_slice(&answer.bytes().await?)?)
}

/// Makes a new collection and upserts all records in one loop: nothing but requests of 1,000, with vectors as base64, which is
/// the form that Chroma takes quickest.
pub fn bare_client(stage: &Stage, collection: &str, records: &[Record]) -> Result<Drained> {
    let watched = stage.watched(&[]);
    let (seconds, used) = stage.runtime.block_on(async {
        let (client, base) = (client()?, format!("{}/{API}", stage.chroma_url()));
        let (before, began) = (watched.snapshot(), Instant::now());
        let made = json!({ "name": collection, "get_or_create": true, "configuration": { "hnsw": { "space": "cosine" } } });
        let answer = post(&client, &base, &made).await?;
        let id = parse(answer).await?["id"].as_str().context("no id")?.to_owned();
        for records in records.chunks(LOOP) {
            let body = json!({
                "ids": records.iter().map(|record| &record.id).collect::<Vec<_>>(),
                "embeddings": records.iter().map(|record| BASE64.encode(&record.vector)).collect::<Vec<_>>(),
                "documents": records.iter().map(|record| &record.document).collect::<Vec<_>>(),
                "metadatas": records.iter().map(|record| &record.metadata).collect::<Vec<_>>(),
            });
            post(&client, &format!("{base}/{id}/upsert"), &body).await?;
        }
        anyhow::Ok((began.elapsed().as_secs_f64(), before.until(&watched.snapshot())))
    })?;
    let found = count(stage, collection)?;
    ensure!(found == records.len() as u64, "the bare client wrote {found} vectors of {}", records.len());
    remove(stage, collection)?;
    Ok(Drained { seconds, used })
}

async fn post(client: &reqwest::Client, url: &str, body: &Value) -> Result<reqwest::Response> {
    let request = client.post(url).header("content-type", "application/json").body(body.to_string());
    Ok(request.send().await?.error_for_status()?)
}
