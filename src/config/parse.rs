//! From the text of a setting to its value, or what would do instead.

use std::time::Duration;

use super::{Lane, Secret, Space};
use crate::event::spoken;
use crate::tls::{self, Tls};

pub(super) const DAY_MS: u64 = 86_400_000;

/// Reads `250ms`, `30s`, `5m`, `24h` or `365d`.
///
/// # Errors
/// The bounds in words, when the text is no duration or lies outside of `min_ms` to `max_ms`.
pub fn duration(text: &str, min_ms: u64, max_ms: u64) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(DAY_MS),
        _ => None,
    };
    let ms = number.parse::<u64>().ok().zip(unit_ms).and_then(|(number, unit_ms)| number.checked_mul(unit_ms));
    match ms {
        Some(ms) if (min_ms..=max_ms).contains(&ms) => Ok(Duration::from_millis(ms)),
        _ => Err(format!("a duration from {} to {}, written like 250ms, 30s, 5m, 24h or 365d", spoken(min_ms), spoken(max_ms))),
    }
}

/// Reads a duration, or `never`.
pub(super) fn duration_or_never(text: &str, min_ms: u64, max_ms: u64) -> Result<Option<Duration>, String> {
    if text == "never" {
        return Ok(None);
    }
    duration(text, min_ms, max_ms).map(Some).map_err(|wanted| format!("never, or {wanted}"))
}

pub(super) fn integer(text: &str, min: u64, max: u64) -> Result<u64, String> {
    text.parse().ok().filter(|value| (min..=max).contains(value)).ok_or_else(|| format!("a whole number from {min} to {max}"))
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

pub(super) fn lanes(text: &str) -> Result<Vec<Lane>, String> {
    const WANTED: &str = "one or more of interactions, sessions, embeddings, archive, separated by commas";
    let mut lanes =
        text.split(',').map(|lane| lane.trim().parse().map_err(|_| WANTED.to_owned())).collect::<Result<Vec<_>, _>>()?;
    lanes.sort_unstable();
    lanes.dedup();
    Ok(lanes)
}

pub(super) fn name(text: &str, forbidden: &str) -> Result<String, String> {
    if (1..=128).contains(&text.len()) && !text.contains(|c: char| c.is_control() || forbidden.contains(c)) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "1 to 128 bytes without spaces, control characters{}",
            if forbidden.contains('{') { " or braces" } else { "" }
        ))
    }
}

pub(super) fn consumer(text: &str) -> Result<String, String> {
    if text.is_empty() {
        let host = gethostname::gethostname().to_string_lossy().replace(char::is_whitespace, "-");
        let host: String = host.chars().take(100).collect();
        return Ok(format!("{host}-{:08x}", rand::random::<u32>()));
    }
    name(text, " \t\r\n")
}

pub(super) fn database_url(text: &str, tls: &Tls) -> Result<(Secret, tls::postgres::Connector), String> {
    const WANTED: &str = "an address such as postgres://user:password@127.0.0.1:5432/aegis";
    let scheme = text.starts_with("postgres://") || text.starts_with("postgresql://");
    let (rest, connector) = tls::postgres::split(text, tls)?;
    let parsed = rest.parse::<tokio_postgres::Config>().ok().filter(|config| !config.get_hosts().is_empty());
    match parsed {
        Some(config) if scheme && config.get_dbname().is_some() => Ok((Secret(rest), connector)),
        _ => Err(WANTED.to_owned()),
    }
}

pub(super) fn http_url(text: &str) -> Result<String, String> {
    const WANTED: &str = "an address such as http://127.0.0.1:8000 or https://chroma.example";
    let url = reqwest::Url::parse(text).map_err(|_| WANTED.to_owned())?;
    if !matches!(url.scheme(), "http" | "https")
        || url.host_str().is_none()
        || url.query().is_some()
        || !url.username().is_empty()
    {
        return Err(WANTED.to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

pub(super) fn token(text: &str) -> Result<Option<Secret>, String> {
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok((!text.is_empty()).then(|| Secret(text.to_owned())));
    }
    Err("visible ASCII characters, as a header carries them".to_owned())
}

pub(super) fn space(text: &str) -> Result<Space, String> {
    [Space::Cosine, Space::L2, Space::Ip]
        .into_iter()
        .find(|space| space.name() == text)
        .ok_or_else(|| "cosine, l2 or ip".to_owned())
}

pub(super) fn api_keys(text: &str) -> Result<Vec<Secret>, String> {
    let keys: Vec<_> = text.split([',', '\n']).map(str::trim).filter(|key| !key.is_empty()).collect();
    if (keys.is_empty() && !text.is_empty()) || keys.iter().any(|key| key.len() < 8 || !key.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err("keys of at least 8 visible ASCII characters, separated by commas".to_owned());
    }
    Ok(keys.into_iter().map(|key| Secret(key.to_owned())).collect())
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    const WANTED: &str = "off, error, warn, info, debug or trace, or a filter such as info,aegis_ingest::lane=debug";
    // EnvFilter takes any word for a module's name; a misspelt level would silence the log.
    let is_level = |level: &str| level.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    let sound = text.split(',').all(|part| match part.rsplit_once('=') {
        Some((_, level)) => is_level(level),
        None => is_level(part),
    });
    if sound && tracing_subscriber::EnvFilter::try_new(text).is_ok() { Ok(text.to_owned()) } else { Err(WANTED.to_owned()) }
}
