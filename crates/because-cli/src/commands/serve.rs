use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
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
    // Before the weights, which take their time: a service manager may think better of it meanwhile.
    let ending = Ending::new(stop);
    let api_key = args.api_key_env.as_deref().map(key);
    if let Some(threads) = args.threads {
        limit_threads(threads)?;
    }
    let settings = settings(&args, api_key);
    settings.check()?;
    let addresses = addresses(&args.host, args.port)?;
    check_free(&addresses)?;
    let first = args.adapter.first().map(|(_, folder)| folder.as_path());
    let model = TunedModel::load(&base(&args.base, first)?, None)?;
    for (name, folder) in &args.adapter {
        model.add_adapter(name, folder)?;
    }
    let is_open = settings.api_key.is_none();
    let server = Server::bind(model, addresses.as_slice(), settings).await?;
    let address = server.address();
    if is_open && !address.ip().is_loopback() {
        tracing::warn!(
            "everybody who reaches {address} is answered; ask for a key with --api-key-env"
        );
    }
    let url = format!("http://{}/v1", reached(address));
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
    let served = server.run(ending.comes()).await;
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

fn settings(args: &Serve, api_key: Option<ApiKey>) -> ServeSettings {
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
    ServeSettings {
        name: args.name.clone(),
        decoding,
        engine,
        max_body_bytes: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        grace: Duration::from_secs(args.grace),
        api_key,
        allowed_hosts: args.allowed_host.clone(),
        ..ServeSettings::default()
    }
}

/// Where this machine itself reaches a server that listens everywhere.
fn reached(address: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = match address.ip() {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        one => one,
    };
    SocketAddr::new(loopback, address.port())
}

/// Whether one of the addresses can be had now. It is let go of again: who connects while the weights are loaded is better
/// refused than kept waiting.
fn check_free(addresses: &[SocketAddr]) -> Result<()> {
    match TcpListener::bind(addresses) {
        Ok(_) => Ok(()),
        Err(source) => {
            let address = format!("{addresses:?}");
            Err(TuneError::Listen { address, source }.into())
        }
    }
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
        // What is no name may be the key itself, put here by mistake.
        let message = match is_name(variable) {
            true => format!(
                "--api-key-env: the environment variable {variable} holds no key: it is not set, empty, or has blanks in it"
            ),
            false => "--api-key-env: not a name of an environment variable, as in SERVE_KEY; the key itself is not given here"
                .to_owned(),
        };
        Cli::command()
            .error(ErrorKind::ValueValidation, message)
            .exit()
    })
}

fn is_name(variable: &str) -> bool {
    let mut bytes = variable.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Ctrl-C, or what a service manager sends; heard from the moment it is made.
struct Ending<'a> {
    stop: &'a Stop,
    #[cfg(unix)]
    terminated: Option<tokio::signal::unix::Signal>,
}

impl<'a> Ending<'a> {
    fn new(stop: &'a Stop) -> Self {
        #[cfg(unix)]
        use tokio::signal::unix::{SignalKind, signal};
        Self {
            stop,
            #[cfg(unix)]
            terminated: signal(SignalKind::terminate()).ok(),
        }
    }

    async fn comes(mut self) {
        let stop = self.stop;
        let pressed = async {
            while !stop.is_requested() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        #[cfg(unix)]
        if let Some(terminated) = &mut self.terminated {
            tokio::select! {
                () = pressed => {}
                _ = terminated.recv() => {}
            }
            return;
        }
        pressed.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_name_is_repeated_in_an_error() {
        for (text, named) in [
            ("SERVE_KEY", true),
            ("_k3y", true),
            ("sk-proj-abc", false),
            ("3KEY", false),
            ("", false),
        ] {
            assert_eq!(is_name(text), named, "{text}");
        }
    }

    #[test]
    fn a_server_that_listens_everywhere_is_reached_through_loopback() {
        for (listens, at) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ] {
            assert_eq!(reached(listens.parse().unwrap()).to_string(), at);
        }
    }
}
