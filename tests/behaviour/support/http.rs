//! One HTTP request at a time, by hand, so that a test decides every byte of it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Head without the status line, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Answer {
    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Sends a request with further header lines, each ended by CR LF; `None`: no answer.
pub async fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> Option<Answer> {
    request_with(address, method, path, headers, "").await
}

/// The same with a body, whose length and type are among the header lines.
pub async fn request_with(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Option<Answer> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n{body}");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let text = String::from_utf8(answer).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers =
            lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        Some(Answer { status, headers: headers.collect(), body: body.to_owned() })
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.ok()?
}
