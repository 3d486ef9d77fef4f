//! `/healthz`, `/readyz` and `/metrics`.
//!
//! **Architecture invariant:** no request here asks another side anything. Answers come from memory, so a scraper or a probe
//! gets them at once whatever is down, and cannot put load on a database. Everything a client may hold is bounded: headers
//! in size and time, connections in number and age.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use subtle::{Choice, ConstantTimeEq};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Secret;
use crate::telemetry::health::Health;
use crate::telemetry::metric::Recorder;

/// The header that holds a key, beside `Authorization: Bearer`.
const KEY_HEADER: &str = "x-api-key";
/// Bytes of a request's head; probes and scrapers send some hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Pause after the system refused to hand over a connection, most likely for want of file descriptors: without one the
/// loop would spin, since the connection stays in the backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The keys of which any one opens `/metrics` and the body of `/readyz`; none at all leaves both open. A clone is the same
/// set.
#[derive(Clone, Debug, Default)]
pub struct Keys(Arc<RwLock<Vec<Secret>>>);

impl Keys {
    /// These keys.
    pub fn new(keys: Vec<Secret>) -> Self {
        Self(Arc::new(RwLock::new(keys)))
    }

    /// From now on these and no others, on connections that are open already as well.
    pub fn replace(&self, keys: Vec<Secret>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Whether what was offered opens the door. Every key is compared with every offer to its end, so the time taken tells
    /// neither which key came close nor how close; only that some key is as long as the offer.
    fn admit(&self, offers: [Option<&[u8]>; 2]) -> bool {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut open = Choice::from(u8::from(keys.is_empty()));
        for offer in offers.into_iter().flatten() {
            for key in keys.iter() {
                open |= key.expose().as_bytes().ct_eq(offer);
            }
        }
        open.into()
    }
}

/// What clients may hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for a request's head to arrive, and for which a connection may idle between requests.
    pub head_timeout: Duration,
    /// Age at which a connection is closed after the answer in hand.
    pub age_max: Duration,
    /// Connections at a time; further ones wait in the backlog of the system.
    pub connections_max: usize,
    /// Time that answers in hand get at the end, of a connection or of the program.
    pub farewell: Duration,
}

impl Default for Limits {
    /// A probe takes milliseconds and a scrape some tens of them, so 5 s of idling is generous; 30 s bound a client that
    /// reads its answer a byte at a time. 64 connections are a handful of scrapers many times over, and few enough to leave
    /// the file descriptors to the stores.
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(5),
            age_max: Duration::from_secs(30),
            connections_max: 64,
            farewell: Duration::from_secs(2),
        }
    }
}

/// What the answers are made of; cheap to clone.
#[derive(Clone, Debug)]
pub struct State {
    /// For `/readyz`.
    pub health: Health,
    /// For `/metrics`.
    pub recorder: Recorder,
    /// Who may see them.
    pub keys: Keys,
    /// Bounds.
    pub limits: Limits,
}

/// Answers until `stop`, then gives answers in hand [`Limits::farewell`] to end.
///
/// # Errors
/// A listener that has no address. Later troubles are waited out: they are no reason to end a worker.
pub async fn serve(listener: TcpListener, state: State, stop: CancellationToken) -> io::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "answers /healthz, /readyz and /metrics");
    let places = Arc::new(Semaphore::new(state.limits.connections_max));
    let mut connections = JoinSet::new();
    let mut refused = false;
    loop {
        // A place first: a connection that nobody serves yet is better off in the backlog than accepted and silent.
        let place = tokio::select! {
            biased;
            // 1. The end comes before any newcomer.
            () = stop.cancelled() => break,
            // 2. Never an error: nobody closes the semaphore.
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        // What has ended is forgotten here, so no more than `connections_max` ended ones are kept.
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                refused = false;
                let (state, stop) = (state.clone(), stop.clone());
                connections.spawn(async move {
                    connection(stream, state, stop).await;
                    drop(place);
                });
            }
            Err(error) if gone(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut refused, true) {
                    tracing::warn!(error = %error, "no connection could be accepted: tries again until one can");
                }
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(state.limits.farewell, all_ended).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

/// Whether a connection went away before it was accepted: the next one is not concerned.
fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(stream: TcpStream, state: State, stop: CancellationToken) {
    let limits = state.limits;
    let service = service_fn(move |request| {
        let response = answer(&state, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        // Without a timer hyper keeps no time, and a client that never ends its headers holds its place for ever. The
        // same time runs between two requests.
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(2 * HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        // 1. Faults of a client are its own: there is nothing to do about one and nothing to log.
        _ = connection.as_mut() => return,
        // 2. The program ends.
        () = stop.cancelled() => {}
        // 3. The connection is old.
        () = sleep(limits.age_max) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.farewell, connection).await;
}

fn answer<B: Body>(state: &State, request: &Request<B>) -> Response<Full<Bytes>> {
    let mut response = route(state, request.method(), request.uri().path(), request.headers());
    if !request.body().is_end_stream() {
        // A body is never read, so what follows it on this connection cannot be told from it.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn route(state: &State, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
        return reply(StatusCode::NOT_FOUND, TEXT, "not found\n");
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "method not allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let admitted = || state.keys.admit([headers.get(KEY_HEADER).map(HeaderValue::as_bytes), bearer(headers)]);
    match path {
        "/healthz" => reply(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => {
            let (ready, snapshot) = state.health.snapshot();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            if admitted() { reply(status, JSON, snapshot) } else { bare(status, Bytes::new()) }
        }
        _ if admitted() => reply(StatusCode::OK, METRICS, state.recorder.render()),
        _ => {
            let mut response = reply(StatusCode::UNAUTHORIZED, TEXT, "an API key is wanted\n");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

/// The key of `Authorization: Bearer KEY`; the scheme in any case, as RFC 9110 has it.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// The text format, without which Prometheus 3 refuses to guess.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = bare(status, body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn bare(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // An old answer to "are you ready" is worse than none.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
