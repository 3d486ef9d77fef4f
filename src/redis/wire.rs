//! The connection that entries come in by.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{ConnectionAddr, ConnectionInfo};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::RedisError;
use super::reply::{self, Garbled, Span, Step};
use crate::seam::{Entry, EntryId};
use crate::tls::Tls;

trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Socket for T {}

/// Most bytes asked of the socket at once, and about what one chunk of entries spans.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// Room for the head of a reply; what waits for one reply after the other needs no more.
const HEAD_BYTES: usize = 1024;

/// From this part of them on a chunk is handed on though more of the reply is to come: each hand-over wakes another task.
const CHUNK_SHARE: usize = 4;

/// Where Redis is, and how to speak TLS to it if its address asks for that.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) address: ConnectionInfo,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Server {
    pub(super) fn new(address: ConnectionInfo, tls: &Tls) -> Self {
        let encrypted = matches!(address.addr(), ConnectionAddr::TcpTls { .. });
        Self { address, tls: encrypted.then(|| Arc::new(tls.client_config())) }
    }

    /// Host and port.
    pub(super) fn place(&self) -> Option<(String, u16)> {
        match self.address.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host.clone(), *port)),
            _ => None,
        }
    }
}

/// A connection for reading entries.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    buf: BytesMut,
    /// Memory for the spans of a chunk.
    spans: Vec<Span>,
    entry_bytes_max: usize,
    /// At most [`READ_BYTES`].
    read_bytes: usize,
    timeout: Duration,
}

/// Entries that came together.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) entries: Vec<Entry>,
    /// Deliveries of each entry, where the reply tells; else empty.
    pub(super) deliveries: Vec<u64>,
    /// Pending entries that somebody deleted from the stream.
    pub(super) gone: Vec<EntryId>,
    /// Bytes that the reply took.
    pub(super) bytes: usize,
}

impl From<Garbled> for RedisError {
    fn from(garbled: Garbled) -> Self {
        // Half a reply after a cut connection looks like this as well: connect again rather than stop.
        Self::Unreachable(format!("the reply is garbled: {garbled}"))
    }
}

impl Wire {
    /// Connects, authenticates and selects the database.
    pub(super) async fn connect(
        server: &Server,
        deadline: Duration,
        entry_bytes_max: usize,
        read_bytes: usize,
    ) -> Result<Self, RedisError> {
        let info = &server.address;
        let opening = async {
            let (host, port) = match info.addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host, *port),
                _ => return Err(RedisError::Unexpected("a unix socket, which is not supported".to_owned())),
            };
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            let socket: Box<dyn Socket> = match &server.tls {
                Some(tls) => {
                    let name = rustls::pki_types::ServerName::try_from(host.clone())
                        .map_err(|_| RedisError::Unexpected("a host name that TLS cannot check".to_owned()))?;
                    Box::new(tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await?)
                }
                None => Box::new(tcp),
            };
            let mut wire =
                Self { socket, buf: BytesMut::new(), spans: Vec::new(), entry_bytes_max, read_bytes, timeout: deadline };
            let settings = info.redis_settings();
            match (settings.username(), settings.password()) {
                (Some(user), Some(password)) => wire.simple(&[b"AUTH", user.as_bytes(), password.as_bytes()]).await?,
                (None, Some(password)) => wire.simple(&[b"AUTH", password.as_bytes()]).await?,
                (_, None) => {}
            }
            if settings.db() != 0 {
                wire.simple(&[b"SELECT", settings.db().to_string().as_bytes()]).await?;
            }
            Ok(wire)
        };
        timeout(deadline, opening)
            .await
            .map_err(|_| RedisError::Unreachable("no connection within AEGIS_REDIS_TIMEOUT".to_owned()))?
    }

    /// Sends a command.
    pub(super) async fn send(&mut self, args: &[&[u8]]) -> Result<(), RedisError> {
        let mut command = Vec::with_capacity(64 + args.iter().map(|arg| arg.len() + 16).sum::<usize>());
        command.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
        for arg in args {
            command.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            command.extend_from_slice(arg);
            command.extend_from_slice(b"\r\n");
        }
        let sending = async {
            self.socket.write_all(&command).await?;
            // TLS may hold back what the socket did not take at once.
            self.socket.flush().await
        };
        match timeout(self.timeout, sending).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(RedisError::Unreachable("a command could not be sent within AEGIS_REDIS_TIMEOUT".to_owned())),
        }
    }

    async fn simple(&mut self, args: &[&[u8]]) -> Result<(), RedisError> {
        self.send(args).await?;
        let line = self.line(self.timeout).await?;
        match line.first() {
            Some(b'+') => Ok(()),
            Some(b'-') => Err(RedisError::from_line(&String::from_utf8_lossy(&line[1..]))),
            _ => Err(RedisError::Unexpected("an answer to AUTH or SELECT that is neither OK nor an error".to_owned())),
        }
    }

    /// Reads more: at least one byte, into a buffer of `bytes` that has room for an eighth of them or more.
    async fn fill(&mut self, bytes: usize, deadline: Duration) -> Result<(), RedisError> {
        let held = self.buf.len();
        if self.buf.capacity() - held < bytes / 8 {
            // Always of one size, with what is still held in it: the hole in memory that one leaves is filled by the next.
            self.buf.reserve(bytes.saturating_sub(held).max(bytes / 8));
        }
        match timeout(deadline, self.socket.read_buf(&mut self.buf)).await {
            Ok(Ok(0)) => Err(RedisError::Unreachable("the connection was closed".to_owned())),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(RedisError::Unreachable("no answer in time".to_owned())),
        }
    }

    /// Takes one line off, without its end.
    async fn line(&mut self, deadline: Duration) -> Result<BytesMut, RedisError> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buf, b"\r\n") {
                let line = self.buf.split_to(end);
                self.buf.advance(2);
                return Ok(line);
            }
            if self.buf.len() > 64 * 1024 {
                return Err(Garbled("a line without end").into());
            }
            self.fill(HEAD_BYTES, deadline).await?;
        }
    }

    /// Takes the head of an element off; an error line is an error.
    async fn head(&mut self, deadline: Duration) -> Result<(u8, i64), RedisError> {
        let line = self.line(deadline).await?;
        let number = || std::str::from_utf8(&line[1..]).ok().and_then(|text| text.parse().ok());
        match line.first() {
            Some(b'-') => Err(RedisError::from_line(&String::from_utf8_lossy(&line[1..]))),
            Some(kind @ (b'*' | b'$' | b':')) => Ok((*kind, number().ok_or(Garbled("a length that is no number"))?)),
            _ => Err(Garbled("an element of an unknown type").into()),
        }
    }

    async fn bulk(&mut self) -> Result<BytesMut, RedisError> {
        match self.head(self.timeout).await? {
            (b'$', len @ 0..=65536) => {
                while self.buf.len() < len as usize + 2 {
                    self.fill(HEAD_BYTES, self.timeout).await?;
                }
                let text = self.buf.split_to(len as usize);
                self.buf.advance(2);
                Ok(text)
            }
            _ => Err(Garbled("a short text was expected").into()),
        }
    }

    /// Reads the head of XREADGROUP's reply: how many entries follow. `block` is how long the server may wait.
    pub(super) async fn read_head(&mut self, block: Duration) -> Result<u64, RedisError> {
        match self.head(block + self.timeout).await? {
            (b'*' | b'$', -1) | (b'*', 0) => {
                // Idle: one of perhaps a thousand streams, each with a buffer for entries that it does not get.
                if self.buf.is_empty() {
                    (self.buf, self.spans) = (BytesMut::new(), Vec::new());
                }
                return Ok(0);
            }
            (b'*', 1) => {}
            _ => return Err(Garbled("one stream was expected").into()),
        }
        if self.head(self.timeout).await? != (b'*', 2) {
            return Err(Garbled("a stream was expected").into());
        }
        self.bulk().await?;
        self.array().await
    }

    /// Reads the head of a plain array of entries: how many follow.
    pub(super) async fn array_head(&mut self) -> Result<u64, RedisError> {
        self.array().await
    }

    async fn array(&mut self) -> Result<u64, RedisError> {
        match self.head(self.timeout).await? {
            (b'*', len) if len >= 0 => Ok(len as u64),
            (b'*', -1) => Ok(0),
            _ => Err(Garbled("an array was expected").into()),
        }
    }

    /// Reads the next of `left` entries that are still to come: at least one, about a fourth of `read_bytes` to
    /// all of them where there are so many. Takes them off `left`.
    pub(super) async fn chunk(&mut self, left: &mut u64) -> Result<Chunk, RedisError> {
        let mut chunk = Chunk::default();
        let mut spans = std::mem::take(&mut self.spans);
        let mut at = 0;
        while *left > 0 {
            match reply::entry(&self.buf, at, self.entry_bytes_max)? {
                Step::Done(span, next) => {
                    at = next;
                    *left -= 1;
                    spans.push(span);
                    if at >= self.read_bytes {
                        break;
                    }
                }
                // Enough to be worth handing on; less waits for the rest of the reply, which is on its way.
                Step::More(_) if at >= self.read_bytes / CHUNK_SHARE => break,
                Step::Oversize { .. } if !spans.is_empty() => break,
                Step::More(needed) => {
                    self.buf.reserve(needed.saturating_sub(self.buf.len()));
                    self.fill(self.read_bytes, self.timeout).await?;
                }
                Step::Oversize { id, len, body_at, fields_left, after } => {
                    self.buf.advance(body_at);
                    self.discard(len).await?;
                    for _ in 0..fields_left {
                        match self.head(self.timeout).await? {
                            (b'$', len) if len >= 0 => self.discard(len as u64).await?,
                            _ => return Err(Garbled("a text was expected").into()),
                        }
                    }
                    for _ in 0..after {
                        self.head(self.timeout).await?;
                    }
                    *left -= 1;
                    chunk.entries.push(reply::oversize(id, len));
                    self.spans = spans;
                    return Ok(chunk);
                }
            }
        }
        let bytes = self.buf.split_to(at).freeze();
        chunk.bytes = bytes.len();
        chunk.entries.reserve(spans.len());
        for span in spans.drain(..) {
            if let Some(id) = span.gone() {
                chunk.gone.push(id);
            } else {
                chunk.entries.push(span.entry(&bytes));
                chunk.deliveries.extend(span.deliveries);
            }
        }
        self.spans = spans;
        Ok(chunk)
    }

    /// Drops the next `len` bytes and the line end behind them, without ever holding more than a buffer of them.
    async fn discard(&mut self, len: u64) -> Result<(), RedisError> {
        let mut left = len + 2;
        while left > 0 {
            if self.buf.is_empty() {
                self.fill(self.read_bytes, self.timeout).await?;
            }
            let part = left.min(self.buf.len() as u64);
            self.buf.advance(part as usize);
            left -= part;
        }
        Ok(())
    }
}
