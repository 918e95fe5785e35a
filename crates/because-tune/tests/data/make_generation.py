#!/usr/bin/env python3
"""Writes generation.json: what transformers answers, greedily, on the random models that make_parity.py has made.

    python make_generation.py        # needs torch, transformers, peft, and the folders of make_parity.py beside it

For each of three bases, plain and with the adapter beside it: the 200 tokens after each of eight ragged prompts, each
computed alone, f32, CPU. Four of the prompts begin alike. The bases are read with a longer context than they are stored
with. A set of prompts is drawn again, from the next seed, until the likeliest token is ahead of the second by more than
`MARGIN` at every step: what two right programs may differ by must not decide.
"""

import json
import random
from pathlib import Path

import peft
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
MODELS = ["parity", "parity-tied", "parity-odd"]
LENGTHS = [1, 3, 16, 17, 33, 40, 52, 64]
SHARED, TOKENS, MARGIN = 32, 200, 2e-4


def prompts(vocabulary, seed):
    """Ragged rows; the longest four begin with the same tokens."""
    draw = random.Random(seed)
    head = [draw.randrange(vocabulary) for _ in range(SHARED)]
    rows = []
    for length in LENGTHS:
        start = head if length > SHARED else []
        rows.append(start + [draw.randrange(vocabulary) for _ in range(length - len(start))])
    return rows


def greedy(model, prompt):
    """The answer, and how far ahead its tokens were at least."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    ahead = min(float(top[0] - top[1]) for top in (step[0].float().topk(2).values for step in out.logits))
    return out.sequences[0, len(prompt):].tolist(), ahead


def answers(name):
    folder = HERE / name
    base = folder / json.loads((folder / "reference.json").read_text())["base"]
    load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, max_position_embeddings=512).eval()
    plain, adapted = load(), PeftModel.from_pretrained(load(), folder / "adapter").eval()
    for seed in range(1000):
        rows = prompts(plain.config.vocab_size, seed)
        made = {"plain": [], "adapted": []}
        for kind, model in (("plain", plain), ("adapted", adapted)):
            for row in rows:
                tokens, ahead = greedy(model, row)
                if ahead <= MARGIN:
                    break
                made[kind].append(tokens)
        if all(len(done) == len(rows) for done in made.values()):
            return {"base": str(base.relative_to(HERE)), "seed": seed, "prompts": rows, **made}
    raise SystemExit(f"{name}: no seed with clear answers")


def main():
    torch.set_grad_enabled(False)
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    lines = [f'"versions": {json.dumps(versions)}']
    for name in MODELS:
        fields = answers(name)
        rows = lambda kind: "[\n" + ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in fields[kind]) + "]"
        parts = [f'"base": {json.dumps(fields["base"])}', f'"seed": {fields["seed"]}']
        parts += [f'"{kind}": {rows(kind)}' for kind in ("prompts", "plain", "adapted")]
        lines.append(f'"{name}": {{' + ",\n ".join(parts) + "}")
        print(name, "seed", fields["seed"], {kind: len({tuple(row) for row in fields[kind]}) for kind in ("plain", "adapted")},
              "distinct tokens", len({token for row in fields["plain"] for token in row}), flush=True)
    (HERE / "generation.json").write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
