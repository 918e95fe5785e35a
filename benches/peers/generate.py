#!/usr/bin/env python3
"""The peer of ../generate.rs, which starts it: greedy answers by transformers, one padded batch, f32, two threads.

    python generate.py WORK.json          # prints one line of JSON

The time to the first token is that of a batch of the same prompts with one new token, measured before.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def main():
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    work = json.loads(Path(sys.argv[1]).read_text())
    model = AutoModelForCausalLM.from_pretrained(work["base"], dtype=torch.float32).eval()
    longest = max(map(len, work["prompts"]))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in work["prompts"]])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in work["prompts"]])

    def answer(tokens, ids=ids, mask=mask):
        begun = time.perf_counter()
        config = GenerationConfig(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
        out = model.generate(ids, attention_mask=mask, generation_config=config)
        return time.perf_counter() - begun, out[:, ids.shape[1]:].tolist()

    answer(2, ids[:1, -20:], mask[:1, -20:])
    first, _ = answer(1)
    seconds, answers = answer(work["answer"])
    print(json.dumps({
        "seconds": seconds, "first_token_seconds": first, "prompts_seconds": first, "tokens": sum(map(len, answers)), "cached_share": 0.0,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "ids": answers}))


if __name__ == "__main__":
    main()
