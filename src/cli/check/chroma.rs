//! Chroma: reachable, and the collection as it is against the collection as it is configured.

use super::super::table::{counted, grouped};
use super::Findings;
use crate::chroma::{ChromaError, Client};
use crate::config::{Config, Space};

fn advice(error: &ChromaError) -> &'static str {
    match error {
        ChromaError::Unreachable(_) | ChromaError::Interrupted(_) | ChromaError::Timeout(_) => {
            "is it running, and does AEGIS_CHROMA_URL lead to it?"
        }
        ChromaError::Untrusted(_) => "a worker waits until this is mended",
        ChromaError::Unauthorized(_) => "set AEGIS_CHROMA_TOKEN to what the proxy wants",
        ChromaError::Overloaded | ChromaError::Failed { .. } => "wait until it serves again; see its log",
        ChromaError::NotFound(_)
        | ChromaError::Unexpected { .. }
        | ChromaError::Garbled(_)
        | ChromaError::TooLarge
        | ChromaError::Dimension { .. }
        | ChromaError::Refused { .. } => "is it Chroma 1.x with /api/v2 that answers at AEGIS_CHROMA_URL?",
        ChromaError::Unusable(_) => "correct this setting",
    }
}

pub(super) async fn check(config: &Config) -> Findings {
    let mut found = Findings::about("Chroma");
    if let Err(error) = ask(&mut found, config).await {
        found.fail(error.to_string(), advice(&error));
    }
    found
}

async fn ask(found: &mut Findings, config: &Config) -> Result<(), ChromaError> {
    let client = Client::new(&config.chroma)?;
    client.heartbeat().await?;
    let limits = client.pre_flight().await?;
    found.ok(format!("answers; takes {} vectors a request", grouped(limits.batch_max as u64)));
    let (name, wanted) = (&config.chroma.collection, config.chroma.space);
    let Some(collection) = client.collection(name).await? else {
        found.ok(format!("collection {name} is not there yet; the worker makes it, with space {}", wanted.name()));
        return Ok(());
    };
    let count = client.count(collection.id).await?;
    let dimension =
        collection.dimension.map_or_else(|| "no dimension yet".to_owned(), |dimension| format!("dimension {dimension}"));
    found.ok(format!("collection {name}: {}, {dimension}", counted(count, "vector")));
    let space = collection.space.map_or("unknown", Space::name);
    if collection.space == Some(wanted) {
        found.ok(format!("collection {name} has space {space}, as AEGIS_CHROMA_SPACE asks for"));
    } else {
        found.warn(
            format!("collection {name} has space {space}, where AEGIS_CHROMA_SPACE asks for {}; it keeps its own", wanted.name()),
            format!("set AEGIS_CHROMA_SPACE={space}, or choose another AEGIS_CHROMA_COLLECTION"),
        );
    }
    Ok(())
}
