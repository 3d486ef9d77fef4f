//! From the first signal to the exit status: stop reading, finish what is in hand, and never end in silence.

use std::future::Future;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything in hand was settled or left for others.
    Done,
    /// Something that has to be changed first: a wrong password, a missing table.
    Unusable,
    /// A bug: a task panicked or ended by itself.
    Bug,
    /// A second signal.
    Aborted,
}

impl Ending {
    /// The exit status.
    pub const fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Unusable => 1,
            // EX_SOFTWARE of sysexits.h.
            Self::Bug => 70,
            // What shells report for SIGINT.
            Self::Aborted => 130,
        }
    }
}

/// Asks everybody to leave, first softly, then hard.
#[derive(Clone, Default)]
pub struct Leaving {
    /// Reading stops.
    pub stop: CancellationToken,
    /// Whatever is not done by now is left for others.
    pub abort: CancellationToken,
}

/// Why a task ended the program.
#[derive(Debug)]
pub enum Fatal {
    /// An operator has to change something first.
    Unusable(String),
    /// A bug.
    Bug(String),
}

/// Tasks that live as long as the program.
#[derive(Default)]
pub struct Tasks(JoinSet<(&'static str, Result<(), Fatal>)>);

impl Tasks {
    /// Starts a task that is to end only when it is asked to.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = Result<(), Fatal>> + Send + 'static) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// Waits for the first signal and for the tasks to end after it.
    pub async fn run(
        mut self,
        leaving: &Leaving,
        drain_timeout: Duration,
        mut signals: Signals,
        mut hangup: impl FnMut(),
    ) -> Ending {
        let mut ending = Ending::Done;
        loop {
            tokio::select! {
                biased;
                // 1. A signal: the first asks to leave, the second does not wait.
                heard = signals.next() => {
                    if heard == Heard::Hangup {
                        hangup();
                        continue;
                    }
                    if leaving.stop.is_cancelled() {
                        tracing::warn!("a second signal: leaving at once; what is in hand is taken over by others");
                        return Ending::Aborted;
                    }
                    tracing::info!(drain_timeout = ?drain_timeout, "leaving: no more is read; what is in hand is written and acknowledged");
                    leaving.stop.cancel();
                    let abort = leaving.abort.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(drain_timeout).await;
                        abort.cancel();
                    });
                }
                // 2. A task ended: after the signal that is its duty, before it a fault.
                ended = self.0.join_next() => match ended {
                    None => return ending,
                    Some(Ok((_, Ok(())))) if leaving.stop.is_cancelled() => {}
                    Some(ended) => {
                        ending = fault(ended);
                        leaving.stop.cancel();
                        // A program with a bug does not drain for long: others take over what it held.
                        leaving.abort.cancel();
                    }
                },
            }
        }
    }
}

fn fault(ended: Result<(&'static str, Result<(), Fatal>), tokio::task::JoinError>) -> Ending {
    match ended {
        Ok((task, Err(Fatal::Unusable(error)))) => {
            tracing::error!(task, error, "cannot work like this");
            Ending::Unusable
        }
        Ok((task, Err(Fatal::Bug(error)))) => {
            tracing::error!(task, error, "a bug: the program ends; please report it");
            Ending::Bug
        }
        Ok((task, Ok(()))) => {
            tracing::error!(task, "a task ended by itself: the program ends; please report it");
            Ending::Bug
        }
        Err(_) => {
            tracing::error!("a task panicked: the program ends; please report it");
            Ending::Bug
        }
    }
}

/// Raises the soft limit of open files to `needed`: each stream has a connection of its own.
///
/// # Errors
/// The hard limit forbids it; in words.
pub fn allow_open_files(needed: usize) -> anyhow::Result<()> {
    let needed = needed as u64;
    let limit = getrlimit(Resource::Nofile);
    // `None` is no limit.
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let raised = limit.maximum.is_none_or(|maximum| maximum >= needed)
        && setrlimit(Resource::Nofile, Rlimit { current: Some(needed), ..limit }).is_ok();
    anyhow::ensure!(
        raised,
        "AEGIS_PARTITIONS: {needed} files and connections are needed at the same time, and the limit is {}: raise it (ulimit -n, \
         LimitNOFILE), or let this worker serve fewer lanes (AEGIS_LANES)",
        limit.maximum.unwrap_or_default()
    );
    Ok(())
}

/// The signals that the program heeds.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// The system has no room for a handler.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::Leave,
            _ = self.interrupt.recv() => Heard::Leave,
            _ = self.hangup.recv() => Heard::Hangup,
        }
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// SIGTERM or SIGINT.
    Leave,
    /// SIGHUP: settings that can change while it runs are reread.
    Hangup,
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ending_of(task: impl Future<Output = Result<(), Fatal>> + Send + 'static) -> (Ending, Leaving) {
        let leaving = Leaving::default();
        let mut tasks = Tasks::default();
        let others = leaving.stop.clone();
        tasks.spawn("dutiful", async move {
            others.cancelled().await;
            Ok(())
        });
        tasks.spawn("guilty", task);
        let ending = tasks.run(&leaving, Duration::from_secs(60), Signals::listen().unwrap(), || ()).await;
        (ending, leaving)
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_program_with_a_status() {
        let (ending, leaving) = ending_of(async { panic!("on purpose") }).await;
        assert_eq!((ending, ending.status()), (Ending::Bug, 70));
        assert!(leaving.stop.is_cancelled() && leaving.abort.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_ends_the_program_with_a_status() {
        assert_eq!(ending_of(async { Ok(()) }).await.0, Ending::Bug);
        assert_eq!(ending_of(async { Err(Fatal::Bug("a bug".to_owned())) }).await.0, Ending::Bug);
        assert_eq!(ending_of(async { Err(Fatal::Unusable("a wrong password".to_owned())) }).await.0, Ending::Unusable);
    }
}
