//! A chat model of your own: anything that can answer a prompt takes part in every stage. This one wraps another model and
//! counts what it is asked, which is also how a wrapper is written.
//!
//! Needs: nothing.
//!
//!     cargo run --release --example custom_model
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::atomic::{AtomicUsize, Ordering};

use because::core::{Interaction, Node};
use because::graph::{BipartiteGraph, Reviews};
use because::llm::{BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, ModelId, Offline};
use because::propagate::{InitialProfiles, MessagePassing};

struct Counting<M> {
    inner: M,
    words: AtomicUsize,
}

impl<M: ChatModel> ChatModel for Counting<M> {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatResponse, ChatError>> {
        Box::pin(async move {
            let asked: usize = request
                .messages
                .iter()
                .map(|turn| turn.content.split_whitespace().count())
                .sum();
            self.words.fetch_add(asked, Ordering::Relaxed);
            self.inner.chat(request).await
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

#[tokio::main]
async fn main() -> Result<(), because::Error> {
    let rows = [
        (
            "ann",
            "dune",
            "Slow politics under the sand, and I loved every page.",
        ),
        ("ann", "emma", "Sharp, kind and funny about vanity."),
        ("bob", "emma", "A village comedy with teeth."),
    ];
    let interactions = rows.map(|(user, item, review)| Interaction {
        review: Some(review.to_owned()),
        ..Interaction::new(user, item)
    });
    let graph = BipartiteGraph::new(&interactions)?;
    let reviews = Reviews::of(&graph, &interactions);

    let model = Counting {
        inner: Offline::new(),
        words: AtomicUsize::new(0),
    };
    let initial = InitialProfiles::new(&model)
        .run(&graph, &reviews, &[], &[])
        .await?
        .profiles;
    let layers = MessagePassing::new(&model)
        .layers(1)
        .run(&graph, initial)
        .await?;

    for user in ["ann", "bob"] {
        println!(
            "{user}: {}",
            layers[0]
                .profiles
                .summary(&Node::User(user.into()))
                .unwrap_or_default()
        );
    }
    println!("words asked: {}", model.words.load(Ordering::Relaxed));
    Ok(())
}
