//! Why an item is recommended: text message passing over the interaction graph, contrastive prompting, and a local model tuned on the result
