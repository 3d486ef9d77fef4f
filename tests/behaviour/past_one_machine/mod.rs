//! Several servers: a Redis Cluster and a Redis behind sentinels, with primaries that are killed and slots that move.

mod cluster;
mod load;
mod partitions;
mod sentinel;
mod tls;

/// Straight to the terminal: cargo keeps back what a test prints until it fails.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn setting(name: &str, default: usize) -> usize {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { default } else { text.parse().unwrap_or_else(|_| panic!("{name}: a number")) }
}
