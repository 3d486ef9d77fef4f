//! Bad settings: exit status 2 and one line that names the variable, what it was and what would do, before any connection.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use aegis_ingest::config::SETTINGS;
use tempfile::TempDir;

use crate::support::Space;
use crate::support::worker::{command, command_in};

/// What every case of a secret holds, and no message may.
const SECRET: &str = "hunter2hunter2";

/// Values that will not do, and a part of the sentence that says what would.
const CASES: &[(&str, &[&str], &str)] = &[
    (
        "AEGIS_REDIS_URL",
        &[
            "hunter2hunter2",
            "http://:hunter2hunter2@host:6379",
            "redis://:hunter2hunter2@host:notaport",
            "redis+cluster://:hunter2hunter2@",
            "redis+cluster://:hunter2hunter2@host:6379,host:notaport",
            "redis+cluster://:hunter2hunter2@host:6379,,other:6379",
            "redis+sentinel://:hunter2hunter2@host:notaport/NAME",
            "redis+sentinel://:hunter2hunter2@host:26379/NAME/notadatabase",
            "redis+raft://:hunter2hunter2@host:6379",
        ],
        "redis://",
    ),
    (
        "AEGIS_DATABASE_URL",
        &[
            "hunter2hunter2",
            "mysql://u:hunter2hunter2@h/d",
            "postgres://u:hunter2hunter2@h",
            "postgres://u:hunter2hunter2@h:notaport/d",
        ],
        "postgres://",
    ),
    ("AEGIS_CHROMA_URL", &["localhost:8000", "ftp://127.0.0.1", "http://", "http://h:99999"], "http://127.0.0.1:8000"),
    // A text that no HTTP header may hold.
    ("AEGIS_CHROMA_TOKEN", &["hunter2hunter2\u{1}", "hunter2hunter2\nx"], ""),
    ("AEGIS_TLS_CA_FILE", &["/nonexistent/ca.pem", "/dev/null", "/"], "PEM"),
    ("AEGIS_TLS_CERT_FILE", &["/nonexistent/cert.pem", "/dev/null"], "PEM"),
    ("AEGIS_TLS_KEY_FILE", &["/nonexistent/key.pem", "/dev/null"], "PEM"),
    ("AEGIS_CHROMA_COLLECTION", &["ab", "with space", "-edge", "a/b"], "3 to 512"),
    ("AEGIS_CHROMA_SPACE", &["euclid", "COSINE"], "cosine, l2 or ip"),
    ("AEGIS_HTTP_ADDR", &["9464", "localhost:9464", "127.0.0.1:70000", ":9464"], "127.0.0.1:9464"),
    ("AEGIS_API_KEYS", &["hunter2", "hunter2hunter2,short", "hunter2hunter2 with space", ","], "8"),
    ("AEGIS_LANES", &["interaction", "interactions;sessions", ",", "interactions,"], "interactions, sessions, embeddings"),
    ("AEGIS_KEY_PREFIX", &["a b", "a{0}", "a\tb"], "128"),
    ("AEGIS_GROUP", &["a b", "a\nb"], "128"),
    ("AEGIS_CONSUMER", &["a b", "a\nb"], "128"),
    ("AEGIS_PARTITIONS", &["0", "1025", "-1", "two", "1.5"], "1 to 1024"),
    ("AEGIS_CLAIM_IDLE", &["30", "s", "-30s", "1ms", "30 s", "99999d"], "30s"),
    ("AEGIS_DRAIN_TIMEOUT", &["20", "soon", "2h"], "20s|30s"),
    ("AEGIS_MAX_DELIVERIES", &["0", "1", "ten"], "2 to"),
    ("AEGIS_RETAIN", &["10", "off", "-1s", "366d"], "never, or"),
    ("AEGIS_DEAD_MAX", &["0", "-1", "many"], "1 to"),
    ("AEGIS_MAX_EVENT_AGE", &["365", "0s", "1y", "99999999999999999999d"], "365d"),
    ("AEGIS_MAX_CLOCK_SKEW", &["1", "1hour", "-1h"], "250ms"),
    ("AEGIS_MAX_ENTRY_BYTES", &["1MiB", "0", "99999999999"], "a whole number"),
    ("AEGIS_SESSION_TTL", &["24", "0s", "forever"], "24h"),
    ("AEGIS_SESSION_ENDED_TTL", &["1", "0s"], "24h"),
    ("AEGIS_BATCH_ROWS", &["0", "1e3", "99999999"], "1 to"),
    ("AEGIS_BATCH_BYTES", &["0", "2M"], "a whole number"),
    ("AEGIS_BATCH_AGE", &["0ms", "25", "2m"], "1ms"),
    ("AEGIS_BATCH_VECTORS", &["0", "5462"], "5461"),
    ("AEGIS_WRITERS", &["0", "65", "three"], "1 to 64"),
    ("AEGIS_REDIS_TIMEOUT", &["0s", "5", "10m"], "100ms"),
    ("AEGIS_DATABASE_CONNECT_TIMEOUT", &["0s", "5", "10m"], "100ms"),
    ("AEGIS_DATABASE_WRITE_TIMEOUT", &["0s", "60", "2h"], "100ms"),
    ("AEGIS_CHROMA_TIMEOUT", &["0s", "60", "2h"], "100ms"),
    ("AEGIS_MIGRATE_ON_START", &["maybe", "TRUE!", "2"], "true or false"),
    ("AEGIS_CHUNK_INTERVAL", &["1", "59m", "366d", "never", "a day"], "1h to 365d"),
    ("AEGIS_RETENTION", &["30", "23h", "forever", "365"], "never, or a duration from 1d"),
    ("AEGIS_COLUMNSTORE_AFTER", &["7", "59m", "off"], "never, or a duration from 1h"),
    ("AEGIS_AGGREGATES", &["maybe", "2"], "true or false"),
    ("AEGIS_LOG", &["loud", "info,aegis_ingest=loud", "="], "info"),
    ("AEGIS_LOG_FORMAT", &["text", "JSON"], "json or pretty"),
];

/// Settings for which every text will do; beside `CASES` this must be all of them.
const ANY_TEXT: &[&str] = &[];

/// Runs `run`, which must end by itself with status 2, and returns its one line.
fn refused(settings: &[(&str, &str)], arguments: &[&str]) -> String {
    let output = command(&[&["run"], arguments].concat(), settings);
    one_line(&format!("{settings:?} {arguments:?}"), &output)
}

fn one_line(what: &str, output: &std::process::Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{what}: status\nstdout: {out}\nstderr: {err}");
    assert_eq!(out, "", "{what}: standard output");
    let lines: Vec<_> = err.lines().collect();
    assert_eq!(lines.len(), 1, "{what}: one line, not\n{err}");
    lines[0].to_owned()
}

#[test]
fn every_variable_has_a_case() {
    let all: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    let tried: BTreeSet<_> = CASES.iter().map(|(name, ..)| *name).chain(ANY_TEXT.iter().copied()).collect();
    assert_eq!(all, tried, "each setting needs a case in this file");
    assert_eq!(tried.len(), CASES.len() + ANY_TEXT.len(), "no variable twice");
}

#[test]
fn each_bad_value_is_refused_by_name() {
    let mut wrong = Vec::new();
    for (name, values, would_do) in CASES {
        let setting = SETTINGS.iter().find(|setting| setting.name == *name).unwrap();
        for value in *values {
            let result = std::panic::catch_unwind(|| {
                let line = refused(&[(name, value)], &[]);
                assert!(line.contains(name), "the line does not name {name}: {line}");
                assert!(
                    would_do.split('|').any(|part| line.contains(part)),
                    "{name}={value:?}: the line does not say what would do ({would_do}): {line}"
                );
                if setting.secret {
                    assert!(!line.contains(SECRET), "{name}: the line shows a secret: {line}");
                } else {
                    let shown = format!("{value:?}");
                    assert!(line.contains(&shown), "{name}: the line does not show {shown}: {line}");
                }
            });
            if let Err(panic) = result {
                wrong.push(panic.downcast_ref::<String>().cloned().unwrap_or_default());
            }
        }
    }
    assert!(wrong.is_empty(), "{} values:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_cluster_wants_partitions_and_sentinels_a_name() {
    for url in ["redis+cluster://:hunter2hunter2@h1:6379,h2:6379", "redis://:hunter2hunter2@h1:6379,h2:6379"] {
        let line = refused(&[("AEGIS_REDIS_URL", url)], &[]);
        assert!(line.contains("AEGIS_PARTITIONS is 1") && line.contains("2 to 1024") && !line.contains(SECRET), "{line}");
    }
    for (url, wanted) in [
        ("redis+cluster://:hunter2hunter2@h1:6379,h2:6379/3", "no path"),
        ("redis+sentinel://:hunter2hunter2@h1,h2", "/NAME"),
        ("redis+sentinel://h1/NAME?sentinel_password=hunter2hunter2@", "percent-encoded"),
        ("redis+sentinel://h1/NAME?password=hunter2hunter2", "sentinel_password"),
    ] {
        let line = refused(&[("AEGIS_REDIS_URL", url), ("AEGIS_PARTITIONS", "4")], &[]);
        assert!(line.contains("AEGIS_REDIS_URL") && line.contains(wanted) && !line.contains(SECRET), "{url}: {line}");
    }
}

#[test]
fn a_flag_is_judged_like_its_variable_and_wins() {
    let line = refused(&[("AEGIS_WRITERS", "2")], &["--writers", "none"]);
    assert!(line.contains("AEGIS_WRITERS") && line.contains("\"none\""), "{line}");
    // A bad variable under a good flag does no harm: what is refused then is the other one.
    let line = refused(&[("AEGIS_WRITERS", "none"), ("AEGIS_LANES", "none")], &["--writers", "2"]);
    assert!(line.contains("AEGIS_LANES"), "{line}");
    let line =
        refused(&[("AEGIS_DATABASE_URL_FILE", "/nonexistent"), ("AEGIS_LOG", "loud")], &["--database-url", "postgres://u@h/d"]);
    assert!(line.contains("AEGIS_LOG"), "a flag wins over a file as well: {line}");
}

#[test]
fn an_empty_setting_counts_as_unset() {
    for setting in SETTINGS {
        // The bad one is judged last, so all others were taken.
        let line = refused(
            &[
                (setting.name, ""),
                ("AEGIS_LOG_FORMAT", if setting.name == "AEGIS_LOG_FORMAT" { "" } else { "text" }),
                ("AEGIS_LOG", if setting.name == "AEGIS_LOG_FORMAT" { "loud" } else { "info" }),
            ],
            &[],
        );
        assert!(line.contains("AEGIS_LOG"), "{} empty: {line}", setting.name);
        let flag = format!("--{}=", setting.flag());
        let line = refused(&[("AEGIS_LOG_FORMAT", "text")], &[&flag]);
        assert!(line.contains("AEGIS_LOG_FORMAT"), "{flag}: {line}");
    }
    let line = refused(&[("AEGIS_REDIS_URL_FILE", ""), ("AEGIS_LOG", "loud")], &[]);
    assert!(line.contains("AEGIS_LOG"), "{line}");
}

#[test]
fn a_variable_that_is_not_utf_8_is_refused_and_not_forgotten() {
    use std::os::unix::ffi::OsStrExt as _;
    let directory = TempDir::new().unwrap();
    let value = std::ffi::OsStr::from_bytes(b"3\xff");
    let mut command = std::process::Command::new(crate::support::worker::PROGRAM);
    // A second fault, so that the program ends in any case.
    command.arg("run").env_clear().env("AEGIS_WRITERS", value).env("AEGIS_LOG_FORMAT", "text").current_dir(directory.path());
    let line = one_line("AEGIS_WRITERS=3\\xff", &command.output().unwrap());
    assert!(line.contains("AEGIS_WRITERS"), "{line}");
}

#[test]
fn secrets_come_from_files_too() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("bad"), format!("{SECRET}\n")).unwrap();
    std::fs::write(path("good"), "postgres://u:p@127.0.0.1:1/d\n").unwrap();
    for name in ["AEGIS_REDIS_URL", "AEGIS_DATABASE_URL"] {
        let line = refused(&[(&format!("{name}_FILE"), &path("bad"))], &[]);
        assert!(line.contains(name) && !line.contains(SECRET), "{line}");
        let variable = format!("{name}_FILE");
        let line = refused(&[(&variable, &path("absent"))], &[]);
        assert!(line.contains(&variable) && line.contains(&path("absent")), "{line}");
        let line = refused(&[(&variable, &path("good")), (name, "redis://x")], &[]);
        assert!(line.contains(&variable) && line.contains("one of the two"), "{line}");
    }
    std::fs::write(path("keys"), "short\n").unwrap();
    let line = refused(&[("AEGIS_API_KEYS_FILE", &path("keys"))], &[]);
    assert!(line.contains("AEGIS_API_KEYS") && !line.contains("short\""), "{line}");
    // A folder can be opened and not read.
    let line = refused(&[("AEGIS_CHROMA_TOKEN_FILE", directory.path().to_str().unwrap())], &[]);
    assert!(line.contains("AEGIS_CHROMA_TOKEN_FILE"), "{line}");
    // A setting that is no secret has no file.
    let line = refused(&[("AEGIS_WRITERS_FILE", &path("absent")), ("AEGIS_LOG", "loud")], &[]);
    assert!(line.contains("AEGIS_LOG "), "{line}");
}

#[tokio::test]
async fn good_secrets_in_files_and_dot_env_are_used() {
    let space = Space::new("good_settings").await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("database url");
    std::fs::write(&file, format!("{}\n", space.database_url_of("migrator"))).unwrap();
    let output = command_in(&directory, &["migrate"], &[("AEGIS_DATABASE_URL_FILE", file.to_str().unwrap())]);
    assert!(output.status.success(), "{output:?}");

    std::fs::write(
        directory.path().join(".env"),
        format!("AEGIS_DATABASE_URL='{}'\nAEGIS_WRITERS=none\n", space.database_url_of("migrator")),
    )
    .unwrap();
    let output = command_in(&directory, &["migrate"], &[]);
    assert!(one_line(".env", &output).contains("AEGIS_WRITERS"), ".env is read");
    let output = command_in(&directory, &["migrate"], &[("AEGIS_WRITERS", "2"), ("AEGIS_DATABASE_URL", "")]);
    assert!(output.status.success(), "the environment wins over .env, an empty variable does not: {output:?}");
    let output = command_in(&directory, &["migrate", "--writers", "2"], &[("AEGIS_WRITERS", "0")]);
    assert!(output.status.success(), "a flag wins over both: {output:?}");

    std::fs::write(directory.path().join(".env"), "AEGIS_LOG\n").unwrap();
    let output = command_in(&directory, &["migrate"], &[]);
    assert!(one_line("a broken .env", &output).contains(".env"));
    std::fs::set_permissions(directory.path().join(".env"), std::fs::Permissions::from_mode(0o000)).unwrap();
}
