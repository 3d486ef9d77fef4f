//! The commands: one small file each. Settings come from flags, the environment and `.env`, in this order.

mod check;
mod dead;
mod embeddings;
mod erase;
mod healthcheck;
mod migrate;
mod produce;
mod progress;
mod run;
mod sessions;
mod status;
mod table;
mod when;

use std::process::ExitCode;

use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Config, Given, SETTINGS};

/// Exit status of a bad setting or flag, as clap has it.
const USAGE: u8 = 2;

#[derive(Parser)]
#[command(
    name = "aegis-ingest",
    version,
    about = "Copies voice-assistant events from Redis Streams into TimescaleDB, Redis session hashes and Chroma",
    after_help = "Settings are read from flags, the environment and .env, in this order; every secret may also come from the file\n\
                  that NAME_FILE names. `aegis-ingest check` tells in words whether everything is as it should be.",
    max_term_width = 120
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the worker until SIGTERM or SIGINT
    Run(run::Args),
    /// Brings the database schema up to date
    Migrate(migrate::Args),
    /// Tells in words whether settings, Redis, the database and Chroma are as they should be
    Check(check::Args),
    /// Writes a load of synthetic voice traffic, or a timeline file, to the streams
    Produce(produce::Args),
    /// Shows streams: length, lag, pending, dead letters
    Status(status::Args),
    /// Lists, shows, replays and drops dead letters
    Dead(dead::Args),
    /// Rebuilds collections of Chroma out of the archive
    Embeddings(embeddings::Args),
    /// Rebuilds sessions out of their updates
    Sessions(sessions::Args),
    /// Erases a person, or a session, from all stores
    Erase(erase::Args),
    /// Exits with 0 when the worker on this machine is ready
    Healthcheck(healthcheck::Args),
}

/// The command line with one flag a setting.
fn command() -> clap::Command {
    SETTINGS.iter().fold(Cli::command(), |command, setting| {
        let help = match (setting.default, setting.secret) {
            (Some(default), false) => format!("{} [default: {default}]", setting.help),
            _ => setting.help.to_owned(),
        };
        command.arg(
            Arg::new(setting.name)
                .long(setting.flag())
                .value_name("VALUE")
                .global(true)
                .hide_short_help(true)
                .help_heading("Settings (shown by --help)")
                .help(format!("{help} [env: {}]", setting.name)),
        )
    })
}

fn given(matches: &ArgMatches) -> Result<Given, crate::config::Bad> {
    let mut given = Given::from_environment()?;
    let mut innermost = matches;
    while let Some((_, sub)) = innermost.subcommand() {
        innermost = sub;
    }
    for setting in SETTINGS {
        // An empty flag counts as unset, like an empty variable.
        if let Ok(Some(value)) = innermost.try_get_one::<String>(setting.name)
            && !value.is_empty()
        {
            given.set(setting.name, value.clone());
        }
    }
    Ok(given)
}

/// Threads that tasks run on: half of the cores, since the servers or other replicas want the rest, and at most four. One takes some
/// 800,000 events a second, and each more wakes the others for a tenth of the work.
fn threads() -> usize {
    (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, 4)
}

/// Parses the command line, judges the settings, and runs the command.
pub fn main() -> ExitCode {
    let matches = command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let config = match given(&matches).and_then(|given| Config::load(&given)) {
        Ok(config) => config,
        Err(bad) => {
            eprintln!("aegis-ingest: {bad}");
            return ExitCode::from(USAGE);
        }
    };
    crate::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("aegis-ingest: the system gives no threads ({error}): raise the limit of processes");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match &cli.command {
            Command::Run(args) => run::run(config, args).await,
            Command::Migrate(args) => migrate::run(&config, args).await,
            Command::Check(args) => Box::pin(check::run(&config, args)).await,
            Command::Produce(args) => produce::run(&config, args).await.map(|()| ExitCode::SUCCESS),
            Command::Status(args) => status::run(&config, args).await,
            Command::Dead(args) => dead::run(&config, args).await,
            Command::Embeddings(args) => Box::pin(embeddings::run(&config, args)).await,
            Command::Sessions(args) => Box::pin(sessions::run(&config, args)).await,
            Command::Erase(args) => Box::pin(erase::run(&config, args)).await,
            Command::Healthcheck(args) => healthcheck::run(&config, args).await,
        }
    });
    // What is still blocked in a system call must not keep the program.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("aegis-ingest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        super::command().debug_assert();
    }
}
