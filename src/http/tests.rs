use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::config::Lane;
use crate::telemetry::health::Component;

const KEY: &str = "first-key-1234";
const OTHER_KEY: &str = "second-key-98765";

/// Ends a test that would hang; nothing waits for it to pass.
const DEADLINE: Duration = Duration::from_secs(20);

struct Server {
    addr: SocketAddr,
    state: State,
    stop: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

async fn server(keys: &[&str], limits: Limits) -> Server {
    let recorder = Recorder::new();
    recorder.lane(Lane::Sessions);
    let health = Health::new(&recorder, &[Lane::Sessions]);
    let keys = Keys::new(keys.iter().map(|key| Secret::from((*key).to_owned())).collect());
    let state = State { health, recorder, keys, limits };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, state.clone(), stop.clone()));
    Server { addr, state, stop, task }
}

async fn plain() -> Server {
    server(&[], Limits::default()).await
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Status and whole text of the answer to one request on its own connection.
    async fn ask(&self, head: &str) -> (u16, String) {
        let mut stream = self.connect().await;
        let (first, rest) = head.split_once('\n').unwrap_or((head, ""));
        let end = if rest.is_empty() { "" } else { "\r\n" };
        let rest = rest.trim_end().replace('\n', "\r\n");
        let request = format!("{first} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{rest}{end}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let text = to_end(&mut stream).await;
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, text)
    }
}

async fn to_end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A reset is an end as well.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Reads one answer of a connection that stays open.
async fn one_answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    while !text.ends_with("ok\n") {
        let mut bytes = [0; 1024];
        let len = timeout(DEADLINE, stream.read(&mut bytes)).await.unwrap().unwrap();
        assert!(len > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..len]).unwrap());
    }
    text
}

fn body(text: &str) -> &str {
    text.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn the_process_lives_whatever_is_down() {
    let server = plain().await;
    let (status, text) = server.ask("GET /healthz").await;
    assert_eq!((status, body(&text)), (200, "ok\n"));
}

#[tokio::test]
async fn readiness_tells_a_word_for_each_component() {
    let server = plain().await;
    let (status, text) = server.ask("GET /readyz?verbose").await;
    assert_eq!(status, 503);
    assert!(text.contains("content-type: application/json\r\n"), "{text}");
    assert_eq!(body(&text), r#"{"status":"not ready","components":{"redis":"starting","database":"starting"}}"#);
    server.state.health.report(Component::Redis, Ok(()));
    server.state.health.report(Component::Database, Ok(()));
    let (status, text) = server.ask("GET /readyz").await;
    assert_eq!((status, body(&text)), (200, r#"{"status":"ready","components":{"redis":"up","database":"up"}}"#));
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let server = plain().await;
    let (status, text) = server.ask("GET /metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(body(&text).contains("\naegis_entries_read_total{lane=\"sessions\"} 0\n"), "{text}");
}

#[tokio::test]
async fn a_head_request_gets_the_head_alone() {
    let server = plain().await;
    for (path, status) in [("/healthz", 200), ("/readyz", 503), ("/metrics", 200), ("/other", 404)] {
        let (got, text) = server.ask(&format!("HEAD {path}")).await;
        assert_eq!((got, body(&text)), (status, ""), "{path}");
        assert!(text.contains("content-length: ") && !text.contains("content-length: 0\r\n"), "{text}");
    }
}

#[tokio::test]
async fn other_paths_are_not_found_and_other_methods_not_allowed() {
    let server = plain().await;
    for path in ["/", "/metrics/", "/healthz/x", "/Metrics", "//metrics", "*"] {
        assert_eq!(server.ask(&format!("GET {path}")).await.0, 404, "{path}");
    }
    assert_eq!(server.ask("POST /other").await.0, 404);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        for path in ["/healthz", "/readyz", "/metrics"] {
            let (status, text) = server.ask(&format!("{method} {path}")).await;
            assert_eq!(status, 405, "{method} {path}");
            assert!(text.contains("allow: GET, HEAD\r\n"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_body_is_not_read_and_ends_the_connection() {
    let server = plain().await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000000\r\n\r\nabc").await.unwrap();
    let text = to_end(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("connection: close\r\n"), "{text}");
}

#[tokio::test]
async fn with_keys_metrics_want_one_of_them() {
    let server = server(&[KEY, OTHER_KEY], Limits::default()).await;
    for (offer, status) in [
        (String::new(), 401),
        ("X-API-Key: wrong-key-1234".to_owned(), 401),
        (format!("X-API-Key: {KEY}x"), 401),
        (format!("X-API-Key: {}", &KEY[1..]), 401),
        ("X-API-Key:".to_owned(), 401),
        ("Authorization: Bearer".to_owned(), 401),
        (format!("Authorization: Basic {KEY}"), 401),
        (format!("Authorization: {KEY}"), 401),
        (format!("X-API-Key: {KEY}"), 200),
        (format!("x-api-key: {OTHER_KEY}"), 200),
        (format!("Authorization: Bearer {KEY}"), 200),
        (format!("authorization: bearer {OTHER_KEY}"), 200),
        (format!("X-API-Key: wrong-key-1234\nAuthorization: Bearer {KEY}"), 200),
    ] {
        let (got, text) = server.ask(&format!("GET /metrics\n{offer}")).await;
        assert_eq!(got, status, "{offer}");
        assert_eq!(text.contains("www-authenticate: Bearer\r\n"), status == 401, "{text}");
        assert_eq!(text.contains("aegis_"), status == 200, "{text}");
    }
    assert_eq!(server.ask("HEAD /metrics").await.0, 401);
    assert_eq!(server.ask("GET /healthz").await.0, 200, "lives without a key");
}

#[tokio::test]
async fn with_keys_readiness_is_a_bare_status_for_strangers() {
    let server = server(&[KEY], Limits::default()).await;
    let (status, text) = server.ask("GET /readyz").await;
    assert_eq!((status, body(&text)), (503, ""));
    let (status, text) = server.ask("GET /readyz\nX-API-Key: wrong-key-1234").await;
    assert_eq!((status, body(&text)), (503, ""));
    let (status, text) = server.ask(&format!("GET /readyz\nX-API-Key: {KEY}")).await;
    assert_eq!(status, 503);
    assert!(body(&text).contains("starting"), "{text}");
    server.state.health.report(Component::Redis, Ok(()));
    server.state.health.report(Component::Database, Ok(()));
    let (status, text) = server.ask("GET /readyz").await;
    assert_eq!((status, body(&text)), (200, ""));
}

#[tokio::test]
async fn keys_are_replaced_while_it_runs() {
    let server = server(&[KEY], Limits::default()).await;
    server.state.keys.replace(vec![Secret::from(OTHER_KEY.to_owned())]);
    assert_eq!(server.ask(&format!("GET /metrics\nX-API-Key: {KEY}")).await.0, 401);
    assert_eq!(server.ask(&format!("GET /metrics\nX-API-Key: {OTHER_KEY}")).await.0, 200);
}

#[test]
fn any_key_admits_and_no_part_of_one() {
    let keys = Keys::new([KEY, OTHER_KEY].map(|key| Secret::from(key.to_owned())).to_vec());
    assert!(keys.admit([Some(KEY.as_bytes()), None]));
    assert!(keys.admit([None, Some(OTHER_KEY.as_bytes())]));
    assert!(keys.admit([Some(b"wrong"), Some(KEY.as_bytes())]));
    for wrong in [&b""[..], b"first", b"first-key-1235", b"first-key-12345", b"first-key-1234second-key-98765"] {
        assert!(!keys.admit([Some(wrong), Some(wrong)]));
    }
    assert!(!keys.admit([None, None]));
    assert!(Keys::default().admit([None, None]), "no keys, no door");
    assert!(!format!("{keys:?}").contains(KEY));
}

#[tokio::test]
async fn a_client_that_never_ends_its_headers_is_cut() {
    let limits = Limits { head_timeout: Duration::from_millis(250), ..Limits::default() };
    let server = server(&[], limits).await;
    let start = Instant::now();
    let mut stream = server.connect().await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: te").await.unwrap();
    assert_eq!(to_end(&mut stream).await.matches("HTTP/1.1 200").count(), 0);
    let mut silent = server.connect().await;
    to_end(&mut silent).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    assert!(to_end(&mut idle).await.starts_with("HTTP/1.1 200 "), "answered, then closed for idling");
    assert!(start.elapsed() < Limits::default().head_timeout, "cut by the limit set");
}

#[tokio::test]
async fn an_old_connection_is_closed() {
    let limits = Limits { age_max: Duration::from_millis(500), ..Limits::default() };
    let server = server(&[], limits).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    one_answer(&mut stream).await;
    let start = Instant::now();
    to_end(&mut stream).await;
    assert!(start.elapsed() < Limits::default().head_timeout, "closed for its age and not for idling");
}

#[tokio::test]
async fn headers_beyond_the_bounds_are_refused() {
    let server = plain().await;
    let (status, text) = server.ask(&format!("GET /healthz\nX-Long: {}", "x".repeat(HEAD_BYTES_MAX))).await;
    assert_eq!(status, 431, "{text}");
    let many = "X-One-More: y\n".repeat(HEADERS_MAX + 1);
    assert_eq!(server.ask(&format!("GET /healthz\n{many}")).await.0, 431);
    assert_eq!(server.ask("GET /healthz").await.0, 200);
}

#[tokio::test]
async fn connections_above_the_bound_wait_for_a_place() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let server = server(&[], limits).await;
    let mut holder = server.connect().await;
    holder.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    one_answer(&mut holder).await;
    let mut waiting = server.connect().await;
    waiting.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(timeout(Duration::from_millis(100), waiting.readable()).await.is_err(), "not served while the place is taken");
    drop(holder);
    assert!(to_end(&mut waiting).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn it_ends_soon_with_idle_connections_open() {
    let server = plain().await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    one_answer(&mut idle).await;
    let mut half = server.connect().await;
    half.write_all(b"GET /hea").await.unwrap();
    // Answered in turn, so the half request above has been accepted when it comes back.
    assert_eq!(server.ask("GET /healthz").await.0, 200);
    server.stop.cancel();
    let limit = Limits::default().farewell + Duration::from_secs(1);
    timeout(limit, server.task).await.unwrap().unwrap().unwrap();
    to_end(&mut idle).await;
    to_end(&mut half).await;
    assert!(TcpStream::connect(server.addr).await.is_err(), "nobody listens any more");
}

#[test]
fn a_connection_that_went_away_is_no_reason_to_pause() {
    assert!(gone(&io::Error::from(io::ErrorKind::ConnectionAborted)));
    assert!(!gone(&io::Error::from_raw_os_error(24)), "EMFILE");
}
