//! COPY straight in; where rows exist already, COPY aside and insert what is new. Bisecting what is refused.
//!
//! The two steps are those of Promscale and timescaledb-parallel-copy: unlike INSERT … ON CONFLICT, COPY costs nothing extra
//! as long as nothing conflicts, which is nearly always.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use deadpool_postgres::Object;
use futures_util::SinkExt as _;
use tokio_postgres::CopyInSink;

use super::Database;
use super::error::DatabaseError;
use super::frame::Frames;
use crate::event::{Code, Fault};
use crate::seam::{Rows as _, WriteError, Written};

/// TimescaleDB's limit on the rows of the columnstore that one transaction unpacks.
const UNPACKED_MAX: &str = "timescaledb.max_tuples_decompressed_per_dml_transaction";

/// A table that rows are copied into.
pub(super) struct Target {
    /// Copies straight in.
    pub(super) copy: String,
    /// Makes the temporary table, once a connection. Its columns are spelt out: LIKE would need SELECT on the table.
    pub(super) make_aside: String,
    /// Copies aside.
    pub(super) copy_aside: String,
    /// Inserts from aside what is new.
    pub(super) insert: String,
}

impl Target {
    /// Statements for a table, its columns, and the definitions of the same columns.
    pub(super) fn new(table: &str, columns: &str, definitions: &str) -> Self {
        let aside = format!("pg_temp.aegis_{table}");
        Self {
            copy: format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)"),
            make_aside: format!(
                // Late rows among those of the columnstore: no limit on what is unpacked to see whether they are there already. Where the
                // server does not know the limit, nothing is set.
                "SET client_min_messages = warning; \
                 SELECT set_config('{UNPACKED_MAX}', '0', true) WHERE current_setting('{UNPACKED_MAX}', true) IS NOT NULL; \
                 CREATE TEMPORARY TABLE IF NOT EXISTS aegis_{table} ({definitions}) ON COMMIT DELETE ROWS"
            ),
            copy_aside: format!("COPY {aside} ({columns}) FROM STDIN (FORMAT binary)"),
            // Without a conflict target INSERT is privilege enough.
            insert: format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM {aside} ON CONFLICT DO NOTHING"),
        }
    }
}

/// How rows get into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// COPY into the table.
    Straight,
    /// COPY aside, then insert what is new.
    Aside,
}

async fn copy(client: &Object, statement: &str, pieces: impl Iterator<Item = Bytes>) -> Result<u64, tokio_postgres::Error> {
    let statement = client.prepare_cached(statement).await?;
    let sink: CopyInSink<Bytes> = client.copy_in(&statement).await?;
    let mut sink = std::pin::pin!(sink);
    for piece in pieces {
        sink.feed(piece).await?;
    }
    sink.finish().await
}

/// Brings the rows `from..to` into the table and returns how many are new. Going aside needs a transaction around it.
pub(super) async fn bring(
    client: &Object,
    target: &Target,
    way: Way,
    frames: &Frames,
    (from, to): (usize, usize),
) -> Result<u64, DatabaseError> {
    let pieces = frames.pieces(from, to);
    let brought = async {
        match way {
            Way::Straight => copy(client, &target.copy, pieces).await,
            Way::Aside => {
                client.batch_execute(&target.make_aside).await?;
                copy(client, &target.copy_aside, pieces).await?;
                let insert = client.prepare_cached(&target.insert).await?;
                client.execute(&insert, &[]).await
            }
        }
    };
    brought.await.map_err(|error| DatabaseError::from(&error))
}

/// A connection for one attempt. Unless it is given back it leaves the pool: a transaction or a COPY may be open on it.
pub(super) struct Lease(Option<Object>);

impl Lease {
    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

/// Runs `work` on a connection within the deadline, in a transaction if asked.
pub(super) async fn attempt<T>(
    database: &Database,
    transaction: bool,
    work: impl AsyncFnOnce(&Object) -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    let client = database.connection().await?;
    let cancel = client.cancel_token();
    let lease = Lease(Some(client));
    let Some(client) = lease.0.as_ref() else { return Err(DatabaseError::Bug("a lease without a connection".to_owned())) };
    let run = async |statement: &str| client.batch_execute(statement).await.map_err(|error| DatabaseError::from(&error));
    let all = async {
        if !transaction {
            return work(client).await;
        }
        run("BEGIN").await?;
        match work(client).await {
            Ok(done) => run("COMMIT").await.map(|()| done),
            Err(error) => {
                // Where even this fails the connection is not given back, and the server rolls back by itself.
                run("ROLLBACK").await.map_err(|_| error.clone())?;
                Err(error)
            }
        }
    };
    if let Ok(result) = tokio::time::timeout(database.write_timeout, all).await {
        if !matches!(result, Err(DatabaseError::Unreachable(_) | DatabaseError::Unavailable(_) | DatabaseError::Bug(_))) {
            lease.give_back();
        }
        result
    } else {
        // COPY heeds no statement_timeout: ask the server to end it, but do not wait for long.
        let _ = tokio::time::timeout(Duration::from_secs(2), cancel.cancel_query(database.tls.make())).await;
        Err(DatabaseError::Unreachable("no answer within AEGIS_DATABASE_WRITE_TIMEOUT".to_owned()))
    }
}

/// Writes all frames: straight if it can be, aside where rows exist, in halves where a row is refused, down to the one.
///
/// `write` makes rows `from..to` durable in one transaction and returns how many are new.
pub(super) async fn settle_rows<F>(frames: &Frames, mut write: impl FnMut(usize, usize, Way) -> F) -> Result<Written, WriteError>
where
    F: Future<Output = Result<u64, DatabaseError>>,
{
    let mut written = Written::default();
    let mut todo = vec![(0, frames.len(), Way::Straight)];
    while let Some((from, to, way)) = todo.pop() {
        if from == to {
            continue;
        }
        match write(from, to, way).await {
            Ok(new) => {
                written.new += new;
                written.duplicates += (to - from) as u64 - new;
            }
            Err(DatabaseError::Duplicate | DatabaseError::Compressed) if way == Way::Straight => {
                todo.push((from, to, Way::Aside));
            }
            Err(DatabaseError::Data(reason)) if to - from == 1 => {
                let fault = Fault::new(Code::Rejected, format!("the database refused the event: {reason}"));
                written.rejected.push((frames.place(from), fault));
            }
            Err(DatabaseError::Data(_)) => {
                let middle = from.midpoint(to);
                // The later half is pushed first, so that rows go in in order.
                todo.push((middle, to, way));
                todo.push((from, middle, way));
            }
            Err(error) => return Err(error.into_write_error()),
        }
    }
    Ok(written)
}
