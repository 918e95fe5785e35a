//! Qwen2.5 on Candle: LoRA training and generation; a tuned model is itself a chat model
