use std::path::Path;

use because_core::Message;

use crate::base::Base;
use crate::chat::Chat;
use crate::error::Result;

/// A base's tokenizer and chat template without its weights: what its prompts will be, and how long.
#[derive(Debug)]
pub struct ChatTokens {
    chat: Chat,
    name: String,
    context: usize,
}

impl ChatTokens {
    /// Opens a base as [`TunedModel::load`](crate::TunedModel::load) does, and reads no weights: of a folder `config.json` and
    /// the tokenizer's files are enough, of a GGUF file what stands before the numbers.
    ///
    /// # Errors
    /// When the base is none, or its tokenizer or template cannot be used.
    pub fn open(base: &Path) -> Result<Self> {
        let base = Base::open(base)?;
        Ok(Self {
            chat: base.chat()?,
            name: base.name(),
            context: base.config().max_position_embeddings,
        })
    }

    /// By which artefacts know the base.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tokens that a prompt and its answer may have together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// How many tokens the prompt of a chat has, with what the template puts around its turns.
    ///
    /// # Errors
    /// When the chat cannot be rendered.
    pub fn prompt_tokens(&self, messages: &[Message]) -> Result<usize> {
        Ok(self.chat.prompt(messages)?.len())
    }

    /// How many tokens a text has.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn text_tokens(&self, text: &str) -> Result<usize> {
        Ok(self.chat.vocabulary.encode(text)?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TunedModel;

    #[test]
    fn prompts_are_as_long_without_the_weights() {
        let (folder, turns) = (tempfile::tempdir().unwrap(), [Message::new("user", "why?")]);
        crate::tiny::TinyBase::new()
            .steps(1)
            .vocab_size(300)
            .build(
                vec!["why this and why not that".to_owned(); 4],
                folder.path(),
                &mut |_| {},
            )
            .unwrap();
        let expected = TunedModel::load(folder.path(), None)
            .unwrap()
            .prompt_tokens(&turns)
            .unwrap();
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        let light = ChatTokens::open(folder.path()).unwrap();
        assert_eq!(light.prompt_tokens(&turns).unwrap(), expected);
        assert!(light.text_tokens("why?").unwrap() < expected);
    }
}
