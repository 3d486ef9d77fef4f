//! PostgreSQL: reachable, with TimescaleDB and the schema that this program needs.

use super::Findings;
use crate::config::{Config, Policies};
use crate::event::spoken;
use crate::timescale::policies::{Edition, lacking};
use crate::timescale::{DatabaseError, schema};
use crate::tls::Refusal;

fn advice(error: &DatabaseError) -> &'static str {
    match error {
        DatabaseError::Unreachable(_) => "is it running, and does AEGIS_DATABASE_URL lead to it (host, port, sslmode)?",
        DatabaseError::Unavailable(_) | DatabaseError::Compressed => "wait until it serves again; see its log",
        DatabaseError::Refused(Refusal::Tls(_)) => "see sslmode in AEGIS_DATABASE_URL and the AEGIS_TLS_ settings",
        DatabaseError::Refused(Refusal::User(_)) => {
            "check role, password and database in AEGIS_DATABASE_URL, and the role's rights"
        }
        DatabaseError::Schema(_) => "make the database that AEGIS_DATABASE_URL names, then run `aegis-ingest migrate`",
        DatabaseError::Duplicate | DatabaseError::Data(_) | DatabaseError::Bug(_) => {
            "is it PostgreSQL itself, or a pooler in session mode, that answers at AEGIS_DATABASE_URL?"
        }
    }
}

pub(super) async fn check(config: &Config) -> Findings {
    let mut found = Findings::about("database");
    match schema::inspect(&config.database, &config.lanes).await {
        Ok(database) => {
            judge(&mut found, &database, schema::newest_version(), config.database.migrate_on_start);
            judge_policies(&mut found, &database, &config.database.policies);
        }
        Err(error) => found.fail(error.to_string(), advice(&error)),
    }
    found
}

fn judge(found: &mut Findings, database: &schema::Found, newest: i32, migrate_on_start: bool) {
    found.ok(format!("PostgreSQL {} answers", database.server_version));
    // `run` would mend it by itself, so that a fresh database is no failure then.
    let mut wants_migration = |what: String| {
        if migrate_on_start {
            found.warn(what, "`aegis-ingest run` brings it up to date at its start; `aegis-ingest migrate` does so now");
        } else {
            found.fail(what, "run `aegis-ingest migrate`");
        }
    };
    if !database.missing.is_empty() {
        wants_migration(format!("missing tables: {}", database.missing.join(", ")));
    }
    match database.schema {
        Some(version) if version < newest => {
            wants_migration(format!("the schema has version {version}; this program needs {newest}"));
        }
        Some(version) if version > newest => found.warn(
            format!("the schema has version {version}, which is newer than this program's {newest}"),
            "fine for a rollback; otherwise upgrade this program",
        ),
        Some(version) => found.ok(format!("the schema has version {version}, the newest")),
        None if database.missing.is_empty() => found.ok("the tables are there; this role may not see the version of the schema"),
        None => {}
    }
    match (&database.timescaledb, database.edition.as_deref()) {
        (None, _) => found.fail(
            "the extension TimescaleDB is not in this database",
            "install it on the server, add it to shared_preload_libraries, then let a superuser run CREATE EXTENSION timescaledb",
        ),
        (Some(version), Some("apache")) => {
            found.ok(format!(
                "TimescaleDB {version}, Apache edition: no columnstore; workers drop old chunks, and aggregates are plain views"
            ));
        }
        (Some(version), edition) => found.ok(format!("TimescaleDB {version}, edition {}", edition.unwrap_or("not told"))),
    }
}

/// Holds the policies that the last migration stored against the settings, and these against what the edition can.
fn judge_policies(found: &mut Findings, database: &schema::Found, wanted: &Policies) {
    for line in lacking(wanted, Edition::of(database.edition.as_deref())) {
        found.warn(format!("{}: {}", line.about, line.state), "use the Timescale edition, or leave it as it is");
    }
    let Some(stored) = database.stored.as_ref().map(|stored| stored.policies) else { return };
    let age = |age: Option<std::time::Duration>| age.map_or_else(|| "never".to_owned(), |age| spoken(age.as_millis() as u64));
    let all = [
        ("AEGIS_CHUNK_INTERVAL", age(Some(stored.chunk_interval)), age(Some(wanted.chunk_interval))),
        ("AEGIS_RETENTION", age(stored.retention), age(wanted.retention)),
        ("AEGIS_COLUMNSTORE_AFTER", age(stored.columnstore_after), age(wanted.columnstore_after)),
        ("AEGIS_AGGREGATES", stored.aggregates.to_string(), wanted.aggregates.to_string()),
    ];
    let differing: Vec<_> = (all.iter().filter(|(_, stored, wanted)| stored != wanted))
        .map(|(name, stored, wanted)| format!("{name} is {wanted}, and the database was migrated with {stored}"))
        .collect();
    if differing.is_empty() {
        found.ok(format!("rows are kept: {}", stored.retention.map_or_else(|| "for ever".to_owned(), |kept| age(Some(kept)))));
    } else {
        found.warn(differing.join("; "), "`aegis-ingest migrate` brings it to these settings; give every program the same ones");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_fresh_database_fails_only_when_nobody_would_migrate_it() {
        let found = |migrate_on_start| {
            let database = schema::Found {
                server_version: "17.6".to_owned(),
                timescaledb: Some("2.19.3".to_owned()),
                edition: Some("apache".to_owned()),
                schema: None,
                missing: vec!["sessions"],
                stored: None,
            };
            let mut found = Findings::about("database");
            judge(&mut found, &database, 1, migrate_on_start);
            found.worst()
        };
        assert_eq!((found(true), found(false)), (Level::Warn, Level::Fail));
    }
}
