//! The part of Chroma's HTTP interface (`/api/v2`) that is used, typed.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Url};
use serde::Deserialize;
use uuid::Uuid;

use super::error::ChromaError;
use crate::config::{self, Space};

/// A server that does not take a connection in this time is away, however patient the deadline of a request is.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Shorter than the 60 s after which common proxies close an idle connection, so that a request seldom meets a closed one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Answers about a collection are some 2 KiB; error bodies are cut at it.
pub(super) const SMALL_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Answers that hold records.
pub(super) const RECORDS_BYTES_MAX: usize = 64 << 20;
/// What single-node Chroma says its largest batch is; a larger claim is not believed, a missing one taken for it.
const BATCH_MAX: usize = 5461;

/// A connection pool to one Chroma server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    api: Url,
    timeout: Duration,
    space: Space,
}

/// What the server takes in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records, 1 to 5461.
    pub batch_max: usize,
    /// Whether vectors may come as base64 of little-endian float32.
    pub base64: bool,
}

/// A collection as it is, which is not always as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Its id; a collection that is deleted and made again has another one.
    pub id: Uuid,
    /// Numbers a vector; `None` until the first vector is in.
    pub dimension: Option<usize>,
    /// Its distance; `None` when it is none of the three.
    pub space: Option<Space>,
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// The numbers; NaN where Chroma has none.
    pub embedding: Vec<f32>,
    /// The text, if any.
    pub document: Option<String>,
    /// The metadata, if any.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A record near a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    /// Its id.
    pub id: String,
    /// In the collection's space; less is nearer.
    pub distance: f32,
    /// The text, if any.
    pub document: Option<String>,
    /// The metadata, if any.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Client {
    /// A client; nothing is connected yet.
    ///
    /// # Errors
    /// [`ChromaError::Unusable`]: the address or the token does not fit into a request.
    pub fn new(config: &config::Chroma) -> Result<Self, ChromaError> {
        let mut api = Url::parse(&config.url).map_err(|_| unusable("AEGIS_CHROMA_URL is not an address"))?;
        (api.path_segments_mut())
            .map_err(|()| unusable("AEGIS_CHROMA_URL is not an http address"))?
            .pop_if_empty()
            .extend(["api", "v2"]);
        let mut headers = HeaderMap::new();
        if let Some(token) = &config.token {
            let mut token = HeaderValue::from_bytes(token.expose().as_bytes())
                .map_err(|_| unusable("AEGIS_CHROMA_TOKEN holds a character that no HTTP header may hold"))?;
            token.set_sensitive(true);
            headers.insert("x-chroma-token", token);
        }
        let http = reqwest::Client::builder()
            // Left to itself, reqwest wants root certificates even for plain http, and a minimal container holds none.
            .tls_backend_preconfigured(config.tls.client_config())
            .user_agent(concat!("aegis-ingest/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(config.timeout.min(CONNECT_TIMEOUT_MAX))
            .pool_idle_timeout(IDLE_TIMEOUT)
            // The token must not follow a redirect to another host, and a POST would come back as a GET.
            .redirect(reqwest::redirect::Policy::none())
            // HTTP_PROXY of an operator's shell must not send a producer's texts elsewhere.
            .no_proxy()
            .build()
            .map_err(|error| ChromaError::from_transport(&error, config.timeout))?;
        Ok(Self { http, api, timeout: config.timeout, space: config.space })
    }

    /// The distance of collections that this client creates.
    pub const fn space(&self) -> Space {
        self.space
    }

    /// Whether the server answers. It does so even when it cannot write.
    pub async fn heartbeat(&self) -> Result<(), ChromaError> {
        self.call(Method::GET, self.api(&["heartbeat"]), None, SMALL_ANSWER_BYTES_MAX).await.map(drop)
    }

    /// What the server takes in one request.
    pub async fn pre_flight(&self) -> Result<Limits, ChromaError> {
        #[derive(Deserialize)]
        struct Reply {
            max_batch_size: Option<u64>,
            #[serde(default)]
            supports_base64_encoding: bool,
        }
        let reply: Reply = self.ask(Method::GET, self.api(&["pre-flight-checks"]), None, SMALL_ANSWER_BYTES_MAX).await?;
        let batch_max = reply.max_batch_size.and_then(|max| usize::try_from(max).ok()).unwrap_or(BATCH_MAX);
        Ok(Limits { batch_max: batch_max.clamp(1, BATCH_MAX), base64: reply.supports_base64_encoding })
    }

    /// The collection of that name, which is created when there is none. An existing one keeps its own space.
    pub async fn collection_or_create(&self, name: &str) -> Result<Collection, ChromaError> {
        let wanted = serde_json::json!({
            "name": name,
            "get_or_create": true,
            "configuration": { "hnsw": { "space": self.space.name() } },
        });
        let url = self.collections(&[]);
        let reply: CollectionReply =
            self.ask(Method::POST, url, Some(wanted.to_string().into_bytes()), SMALL_ANSWER_BYTES_MAX).await?;
        reply.try_into()
    }

    /// The collection of that name, if there is one.
    pub async fn collection(&self, name: &str) -> Result<Option<Collection>, ChromaError> {
        match self.ask::<CollectionReply>(Method::GET, self.collections(&[name]), None, SMALL_ANSWER_BYTES_MAX).await {
            Ok(reply) => reply.try_into().map(Some),
            // A 404 without Chroma's own sentence comes from something else at this address.
            Err(ChromaError::NotFound(message)) if message.starts_with("Collection [") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a collection with all that is in it. Returns whether there was one.
    pub async fn delete_collection(&self, name: &str) -> Result<bool, ChromaError> {
        match self.call(Method::DELETE, self.collections(&[name]), None, SMALL_ANSWER_BYTES_MAX).await {
            Ok(_) => Ok(true),
            Err(ChromaError::NotFound(message)) if message.starts_with("Collection [") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Inserts or updates records, all or none. `body` is JSON: `ids`, `embeddings`, `documents`, `metadatas`.
    pub async fn upsert(&self, collection: Uuid, body: Vec<u8>) -> Result<(), ChromaError> {
        let url = self.collections(&[&collection.to_string(), "upsert"]);
        self.call(Method::POST, url, Some(body), SMALL_ANSWER_BYTES_MAX).await.map(drop)
    }

    /// Records in a collection.
    pub async fn count(&self, collection: Uuid) -> Result<u64, ChromaError> {
        self.ask(Method::GET, self.collections(&[&collection.to_string(), "count"]), None, SMALL_ANSWER_BYTES_MAX).await
    }

    /// The records with these ids, in an order of Chroma's choice; unknown ids are left out. Answers above 64 MiB are not read.
    pub async fn get(&self, collection: Uuid, ids: &[&str]) -> Result<Vec<Record>, ChromaError> {
        #[derive(Deserialize)]
        struct Reply {
            ids: Vec<String>,
            embeddings: Vec<Vec<Option<f32>>>,
            documents: Vec<Option<String>>,
            metadatas: Vec<Option<serde_json::Map<String, serde_json::Value>>>,
        }
        let wanted = serde_json::json!({ "ids": ids, "include": ["embeddings", "documents", "metadatas"] });
        let url = self.collections(&[&collection.to_string(), "get"]);
        let reply: Reply = self.ask(Method::POST, url, Some(wanted.to_string().into_bytes()), RECORDS_BYTES_MAX).await?;
        let others = reply.embeddings.into_iter().zip(reply.documents).zip(reply.metadatas);
        let record = |(id, ((embedding, document), metadata)): (String, ((Vec<Option<f32>>, _), _))| Record {
            id,
            embedding: embedding.into_iter().map(|number| number.unwrap_or(f32::NAN)).collect(),
            document,
            metadata,
        };
        Ok(reply.ids.into_iter().zip(others).map(record).collect())
    }

    /// Up to `nearest` records, nearest first. Answers above 64 MiB are not read.
    pub async fn query(&self, collection: Uuid, vector: &[f32], nearest: usize) -> Result<Vec<Neighbour>, ChromaError> {
        #[derive(Deserialize)]
        struct Reply {
            ids: Vec<Vec<String>>,
            distances: Vec<Vec<Option<f32>>>,
            documents: Vec<Vec<Option<String>>>,
            metadatas: Vec<Vec<Option<serde_json::Map<String, serde_json::Value>>>>,
        }
        let wanted = serde_json::json!({
            "query_embeddings": [vector],
            "n_results": nearest,
            "include": ["distances", "documents", "metadatas"],
        });
        let url = self.collections(&[&collection.to_string(), "query"]);
        let reply: Reply = self.ask(Method::POST, url, Some(wanted.to_string().into_bytes()), RECORDS_BYTES_MAX).await?;
        let ids = reply.ids.into_iter().flatten();
        let others = reply.distances.into_iter().flatten();
        let others = others.zip(reply.documents.into_iter().flatten()).zip(reply.metadatas.into_iter().flatten());
        let neighbour = |(id, ((distance, document), metadata)): (String, ((Option<f32>, _), _))| Neighbour {
            id,
            distance: distance.unwrap_or(f32::NAN),
            document,
            metadata,
        };
        Ok(ids.zip(others).map(neighbour).collect())
    }

    fn api(&self, path: &[&str]) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        url
    }

    pub(super) fn collections(&self, path: &[&str]) -> Url {
        let mut url = self.api(&["tenants", "default_tenant", "databases", "default_database", "collections"]);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        url
    }

    pub(super) async fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        method: Method,
        url: Url,
        body: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> Result<T, ChromaError> {
        let answer = self.call(method, url, body, bytes_max).await?;
        serde_json::from_slice(&answer).map_err(|_| ChromaError::Garbled("its JSON has another shape"))
    }

    /// Sends a request and reads the answer; `bytes_max` bounds the answer of a success.
    pub(super) async fn call(
        &self,
        method: Method,
        url: Url,
        body: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ChromaError> {
        let transport = |error: reqwest::Error| ChromaError::from_transport(&error, self.timeout);
        let mut request: RequestBuilder = self.http.request(method, url).timeout(self.timeout);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let mut response = request.send().await.map_err(transport)?;
        let status = response.status();
        let mut answer = Vec::new();
        if status.is_success() {
            while let Some(piece) = response.chunk().await.map_err(transport)? {
                if answer.len() + piece.len() > bytes_max {
                    return Err(ChromaError::Garbled("it is longer than any answer to this request"));
                }
                answer.extend_from_slice(&piece);
            }
            return Ok(answer);
        }
        // The status decides; a complaint that breaks off, as one sent while the request still came in may, only has no words.
        while answer.len() < SMALL_ANSWER_BYTES_MAX
            && let Ok(Some(piece)) = response.chunk().await
        {
            answer.extend_from_slice(&piece);
        }
        Err(ChromaError::from_response(status.as_u16(), &answer))
    }
}

fn unusable(what: &str) -> ChromaError {
    ChromaError::Unusable(what.to_owned())
}

#[derive(Deserialize)]
struct CollectionReply {
    id: String,
    dimension: Option<usize>,
    #[serde(default)]
    configuration_json: Configuration,
}

#[derive(Default, Deserialize)]
struct Configuration {
    hnsw: Option<Index>,
    spann: Option<Index>,
}

#[derive(Deserialize)]
struct Index {
    space: Option<String>,
}

impl TryFrom<CollectionReply> for Collection {
    type Error = ChromaError;

    fn try_from(reply: CollectionReply) -> Result<Self, ChromaError> {
        let id = Uuid::parse_str(&reply.id).map_err(|_| ChromaError::Garbled("a collection has no UUID"))?;
        let index = reply.configuration_json.hnsw.or(reply.configuration_json.spann);
        let space = match index.and_then(|index| index.space).as_deref() {
            Some("cosine") => Some(Space::Cosine),
            Some("l2") => Some(Space::L2),
            Some("ip") => Some(Space::Ip),
            _ => None,
        };
        Ok(Self { id, dimension: reply.dimension, space })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str, token: Option<&str>) -> config::Chroma {
        config::Chroma {
            url: url.to_owned(),
            tls: crate::tls::Tls::default(),
            token: token.map(|token| token.to_owned().into()),
            collection: "interactions".to_owned(),
            space: Space::Cosine,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn addresses_keep_the_path_in_front_and_escape_names() -> Result<(), ChromaError> {
        let client = Client::new(&config("http://host:1/chroma", None))?;
        assert_eq!(client.api(&["heartbeat"]).as_str(), "http://host:1/chroma/api/v2/heartbeat");
        let url = client.collections(&["a/b?c"]);
        assert!(url.as_str().ends_with("/default_database/collections/a%2Fb%3Fc"), "{url}");
        Ok(())
    }

    #[test]
    fn a_token_stays_out_of_debug_output_and_a_broken_one_is_named() -> Result<(), ChromaError> {
        let client = Client::new(&config("http://host:1", Some("s3cr3t")))?;
        assert!(!format!("{client:?}").contains("s3cr3t"));
        let broken = Client::new(&config("http://host:1", Some("s3cr3t\n")));
        let reason = broken.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(reason.contains("AEGIS_CHROMA_TOKEN") && !reason.contains("s3cr3t"), "{reason}");
        Ok(())
    }

    #[test]
    fn a_collection_is_read_from_its_answer() -> Result<(), serde_json::Error> {
        let read = |text: &str| serde_json::from_str::<CollectionReply>(text).map(Collection::try_from);
        let known = Collection { id: Uuid::from_u128(7), dimension: Some(3), space: Some(Space::L2) };
        let id = known.id;
        let full = format!(r#"{{"id":"{id}","dimension":3,"configuration_json":{{"hnsw":{{"space":"l2"}},"spann":null}}}}"#);
        assert_eq!(read(&full)?, Ok(known));
        let bare = format!(r#"{{"id":"{id}","dimension":null}}"#);
        assert_eq!(read(&bare)?, Ok(Collection { dimension: None, space: None, ..known }));
        assert!(read(r#"{"id":"../x","dimension":null}"#)?.is_err());
        Ok(())
    }
}
