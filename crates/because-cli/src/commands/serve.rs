use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use because::Result;
use because::llm::Stop;
use because::tune::{
    ApiKey, Decoding, EngineSettings, ServeSettings, Server, TuneError, TunedModel, limit_threads,
};
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::json;

use super::tune::base;
use crate::args::{Cli, Serve};
use crate::output::Output;

pub(super) async fn serve(args: Serve, output: &Output, stop: &Stop) -> Result<()> {
    let api_key = args.api_key_env.as_deref().map(key);
    if let Some(threads) = args.threads {
        limit_threads(threads)?;
    }
    let first = args.adapter.first().map(|(_, folder)| folder.as_path());
    let model = TunedModel::load(&base(&args.base, first)?, None)?;
    for (name, folder) in &args.adapter {
        model.add_adapter(name, folder)?;
    }
    let engine = EngineSettings {
        max_rows: args.rows,
        queue: args.queue,
        cache_bytes: args.cache,
        ..EngineSettings::default()
    };
    let decoding = Decoding {
        temperature: args.temperature,
        seed: args.seed,
        ..Decoding::greedy(args.max_tokens)
    };
    let settings = ServeSettings {
        name: args.name,
        decoding,
        max_connections: args.rows.saturating_add(args.queue).saturating_add(64),
        engine,
        max_body_bytes: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        grace: Duration::from_secs(args.grace),
        api_key,
        ..ServeSettings::default()
    };
    let is_open = settings.api_key.is_none();
    let addresses = addresses(&args.host, args.port)?;
    let server = Server::bind(model, addresses.as_slice(), settings).await?;
    let address = server.address();
    if is_open && !address.ip().is_loopback() {
        tracing::warn!(
            "everybody who reaches {address} is answered; ask for a key with --api-key-env"
        );
    }
    let reached = match address.ip() {
        IpAddr::V4(any) if any.is_unspecified() => {
            SocketAddr::new([127, 0, 0, 1].into(), address.port())
        }
        _ => address,
    };
    let url = format!("http://{reached}/v1");
    let models = server.models();
    if let [base, adapters @ ..] = models.as_slice()
        && args
            .adapter
            .iter()
            .any(|(name, _)| !adapters.contains(name))
    {
        let reason = format!("{base:?} is the base's name; give another with --name or NAME=DIR");
        let field = "adapter";
        return Err(TuneError::Setting { field, reason }.into());
    }
    let object = json!({ "address": address.to_string(), "base_url": url, "models": models });
    output.result(&object, || {
        format!("{url} answers as {}; Ctrl-C stops it", models.join(", "))
    });
    let served = server.run(stopped(stop)).await;
    tracing::info!("{} chats, {} connections cut", served.asked, served.cut);
    if served.cut > 0 {
        tracing::warn!(
            "{} connections were cut: their answers were not ended in {} s",
            served.cut,
            args.grace
        );
    }
    Ok(())
}

fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    match (name, port).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => {
            let reason = format!("{host:?}: {error}");
            let field = "host";
            Err(TuneError::Setting { field, reason }.into())
        }
    }
}

fn key(variable: &str) -> ApiKey {
    let key = std::env::var(variable).ok().and_then(ApiKey::new);
    key.unwrap_or_else(|| {
        let message = format!(
            "--api-key-env: the environment variable {variable} holds no key: it is not set, empty, or has blanks in it"
        );
        Cli::command()
            .error(ErrorKind::ValueValidation, message)
            .exit()
    })
}

/// Until Ctrl-C, or what a service manager sends.
async fn stopped(stop: &Stop) {
    let pressed = async {
        while !stop.is_requested() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                () = pressed => {}
                _ = terminated.recv() => {}
            }
            return;
        }
    }
    pressed.await;
}
