use std::sync::LazyLock;

use crate::{JsonSchema, PromptTemplate};

/// A schema said in words, for a server that cannot be given it or a model that did not keep to it.
pub(crate) fn instructions(schema: &JsonSchema) -> String {
    static PROMPT: LazyLock<PromptTemplate> = LazyLock::new(|| {
        PromptTemplate::new(include_str!("../prompts/schema.md"), &["schema"])
            .expect("the file beside us names what we fill in")
    });
    PROMPT.render(&[("schema", &schema.schema.to_string())])
}
