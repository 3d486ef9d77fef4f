//! `healthcheck`: whether the worker on this machine is ready, for a container that holds no other program to ask with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::config::Config;

/// Below the 5 s and more that orchestrators give a probe, above what a busy machine takes for one small answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// A status line is 20 bytes; whatever says more than this before its first line ends is no worker.
const STATUS_LINE_BYTES_MAX: u64 = 256;

/// Exits with status 0 when the worker on this machine is ready, with 1 when it is not.
///
/// Asks the worker's /readyz and waits 3 s for the answer. No API key is needed.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example, in a Dockerfile:\n  HEALTHCHECK CMD [\"aegis-ingest\", \"healthcheck\"]")]
pub(super) struct Args {}

/// Asks once. The reason of a failure is one line on standard error.
///
/// # Errors
/// None: a failure is an exit status.
pub(super) async fn run(config: &Config, _args: &Args) -> anyhow::Result<ExitCode> {
    let addr = reachable(config.http.addr);
    let problem = match tokio::time::timeout(DEADLINE, status(addr)).await {
        Ok(Ok(200)) => return Ok(ExitCode::SUCCESS),
        Ok(Ok(503)) => "the worker is not ready: Redis or a store of its lanes does not answer (its log says which)".to_owned(),
        Ok(Ok(status)) => format!("{addr} answered with status {status}: is AEGIS_HTTP_ADDR the worker's?"),
        Ok(Err(error)) => format!("no answer from {addr} ({error:#}): does the worker run, with this AEGIS_HTTP_ADDR?"),
        Err(_) => format!("no answer from {addr} within {} s", DEADLINE.as_secs()),
    };
    eprintln!("{problem}");
    Ok(ExitCode::FAILURE)
}

/// An address that listens everywhere is reached through the loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

async fn status(addr: SocketAddr) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(addr).await?;
    let request =
        format!("GET /readyz HTTP/1.1\r\nHost: {addr}\r\nUser-Agent: aegis-ingest-healthcheck\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut head = stream.take(STATUS_LINE_BYTES_MAX);
    while !answer.contains(&b'\n') && head.read_buf(&mut answer).await? > 0 {}
    parse_status(&answer).context("what answers does not speak HTTP/1.1")
}

fn parse_status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|status| status.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read_and_nothing_else() {
        assert_eq!(parse_status(b"HTTP/1.1 200 OK\r\nx: y"), Some(200));
        assert_eq!(parse_status(b"HTTP/1.1 503\r\n"), Some(503));
        for no in [b"".as_slice(), b"HTTP/1.1", b"SSH-2.0-OpenSSH_9.2", b"HTTP/2 200", b"HTTP/1.1 20x", b"\xff\xff\n"] {
            assert_eq!(parse_status(no), None);
        }
    }

    #[test]
    fn everywhere_is_reached_through_the_loopback() -> Result<(), std::net::AddrParseError> {
        assert_eq!(reachable("0.0.0.0:80".parse()?), "127.0.0.1:80".parse()?);
        assert_eq!(reachable("[::]:80".parse()?), "[::1]:80".parse()?);
        assert_eq!(reachable("10.0.0.1:80".parse()?), "10.0.0.1:80".parse()?);
        Ok(())
    }
}
