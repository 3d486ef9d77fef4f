//! Removing somebody's records.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Client, RECORDS_BYTES_MAX, SMALL_ANSWER_BYTES_MAX};
use super::error::ChromaError;

/// Records asked for, and removed, by one request; within the range of ids that `SQLite` takes in one statement.
const PAGE_MAX: usize = 500;
/// Collections asked for by one request.
const COLLECTIONS_MAX: usize = 500;

/// Whose a record says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Its id.
    pub id: String,
    /// `user_id` of its metadata; numbers as their digits.
    pub user: Option<String>,
    /// `session_id` likewise.
    pub session: Option<String>,
}

/// Which records to look for.
#[derive(Clone, Copy, Debug)]
pub enum Find<'a> {
    /// With this metadata value.
    Metadata(&'a str, &'a str),
    /// With one of these.
    AnyOf(&'a str, &'a [&'a str]),
    /// With one of these ids.
    Ids(&'a [&'a str]),
}

impl Client {
    /// Every collection: its name and its id.
    pub async fn all_collections(&self) -> Result<Vec<(String, Uuid)>, ChromaError> {
        #[derive(Deserialize)]
        struct Reply {
            id: String,
            name: String,
        }
        let mut all = Vec::new();
        loop {
            let mut url = self.collections(&[]);
            let (limit, offset) = (COLLECTIONS_MAX.to_string(), all.len().to_string());
            url.query_pairs_mut().extend_pairs([("limit", &limit), ("offset", &offset)]);
            let page: Vec<Reply> = self.ask(Method::GET, url, None, RECORDS_BYTES_MAX).await?;
            let last = page.len() < COLLECTIONS_MAX;
            for one in page {
                let id = Uuid::parse_str(&one.id).map_err(|_| ChromaError::Garbled("a collection has no UUID"))?;
                all.push((one.name, id));
            }
            if last {
                return Ok(all);
            }
        }
    }

    /// Whose the records are that are looked for; none where the collection is gone.
    pub async fn owners(&self, collection: Uuid, find: Find<'_>) -> Result<Vec<Owned>, ChromaError> {
        #[derive(Deserialize)]
        struct Reply {
            ids: Vec<String>,
            metadatas: Vec<Option<serde_json::Map<String, Value>>>,
        }
        let one = |key: &str, text: &str| match text.parse::<i64>() {
            // A producer may have written a number.
            Ok(number) if number.to_string() == text => json!({ "$or": [{ key: text }, { key: number }] }),
            _ => json!({ key: text }),
        };
        let mut owned = Vec::new();
        let mut offset = 0;
        loop {
            let mut wanted = json!({ "include": ["metadatas"], "limit": PAGE_MAX, "offset": offset });
            match find {
                Find::Metadata(key, text) => wanted["where"] = one(key, text),
                Find::AnyOf(key, texts) => wanted["where"] = json!({ key: { "$in": texts } }),
                Find::Ids(ids) => wanted["ids"] = ids.into(),
            }
            let url = self.collections(&[&collection.to_string(), "get"]);
            let body = Some(wanted.to_string().into_bytes());
            let reply: Reply = match self.ask(Method::POST, url, body, RECORDS_BYTES_MAX).await {
                // Deleted as a whole since it was listed.
                Err(ChromaError::NotFound(message)) if message.starts_with("Collection [") => return Ok(Vec::new()),
                reply => reply?,
            };
            let count = reply.ids.len();
            offset += count;
            owned.extend(reply.ids.into_iter().zip(reply.metadatas).map(|(id, metadata)| {
                let text = |key: &str| match metadata.as_ref()?.get(key)? {
                    Value::String(text) => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    _ => None,
                };
                Owned { user: text("user_id"), session: text("session_id"), id }
            }));
            if count < PAGE_MAX {
                return Ok(owned);
            }
        }
    }

    /// Removes records by their ids; unknown ones are no error.
    pub async fn delete(&self, collection: Uuid, ids: &[String]) -> Result<(), ChromaError> {
        for ids in ids.chunks(PAGE_MAX) {
            let url = self.collections(&[&collection.to_string(), "delete"]);
            let body = json!({ "ids": ids }).to_string().into_bytes();
            self.call(Method::POST, url, Some(body), SMALL_ANSWER_BYTES_MAX).await?;
        }
        Ok(())
    }
}
