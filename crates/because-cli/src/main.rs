//! The `because` command: from raw interactions to explanations and a report.

mod args;
mod commands;
mod moment;
mod output;
mod progress;

use std::process::ExitCode;

use because::Fault;
use because::llm::Stop;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::Cli;
use crate::output::Output;

/// What one thread makes, another drops: an answer goes from the calls' thread to the one that keeps it. Allocators that own
/// memory by thread take a fifth of a call's time for that; this one does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // async-openai logs whole answers that it cannot read; what is wrong with them is in our own error.
    let default = if cli.quiet {
        "error,async_openai=off"
    } else {
        // A download may take many minutes, and says how far it is.
        "warn,async_openai=off,because_tune::hub=info"
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let output = Output::new(cli.json, cli.quiet);
    let stop = Stop::default();
    // One thread for all calls: waking others for each of them costs half as much again as the calls themselves.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output.failure(&error);
            return ExitCode::from(1);
        }
    };
    obey_signals(stop.clone());
    let ended = runtime.block_on(commands::run(cli.command, &output, &stop));
    // A blocking read or a local model may still hold a thread; nothing it does matters any more.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.failure(&error);
            ExitCode::from(match error.fault() {
                Fault::Run => 1,
                Fault::Input => 2,
                Fault::Stopped => 3,
            })
        }
    }
}

/// The first Ctrl-C asks the run to stop once what is under way, and paid for, has come back; the second does not wait. On a
/// thread of its own: while a model is trained, nothing else of ours looks up.
fn obey_signals(stop: Stop) {
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        else {
            return;
        };
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            tracing::warn!(
                "stopping after the calls under way; press Ctrl-C again to stop at once"
            );
            stop.request();
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(3);
            }
        });
    });
}
