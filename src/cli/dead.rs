//! `dead`: dead letters listed, shown, put back, dropped.

mod act;
mod display;
mod list;
mod select;
mod show;

use std::process::ExitCode;

use crate::config::Config;
use crate::redis::Redis;

/// Shows dead letters, puts them back, or drops them.
///
/// An event that cannot be written is set aside in its stream's dead letters, with the reason. Once the reason is gone (a
/// setting was changed, the program upgraded), `dead replay` puts the event back into its stream; it keeps the identity that it
/// had there.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    List(list::Args),
    Show(show::Args),
    Replay(act::ReplayArgs),
    Drop(act::DropArgs),
}

/// Does what was asked.
///
/// # Errors
/// Redis is away or refuses, or what was asked for cannot be done; the message says what would do.
pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    let redis = Redis::new(&config.redis)?;
    match &args.command {
        Command::List(args) => list::run(&redis, config, args).await,
        Command::Show(args) => show::run(&redis, config, args).await,
        Command::Replay(args) => act::replay(&redis, config, args).await,
        Command::Drop(args) => act::drop(&redis, config, args).await,
    }
}
