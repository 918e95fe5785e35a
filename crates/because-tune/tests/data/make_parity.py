#!/usr/bin/env python3
"""Writes the numbers that src/parity.rs compares with: PyTorch, transformers and PEFT on small random models, f32, CPU.

    python make_parity.py [FOLDER]        # needs torch, transformers, peft; the versions end up in each reference.json

| folder          | base                                                             | adapter                         |
|-----------------|------------------------------------------------------------------|---------------------------------|
| parity          | untied, 4 heads on 2, one f32 file                               | rank 4                          |
| parity-tied     | tied, 14 heads on 2, f16 on disk                                 | rank 4                          |
| parity-odd      | tied, 6 heads of width 10 on 3, inner 87, vocabulary 131, bf16 in shards, transformers 5 config | rank 5 |
| parity-dora     | that of parity                                                   | DoRA, magnitudes off their start |
| parity-patterns | that of parity                                                   | rsLoRA, rank and alpha patterns, six of the seven projections |

In each folder: base/; adapter/, as PEFT saves it, B not zero; tokens.jsonl, ragged rows with masked prompts; and
reference.json with reference.safetensors:

* logits: of the first rows, at the positions that reference.json names, one after the other, each `[vocabulary]`;
* gradients: of the first optimiser step before clipping, of every tensor in the order of `parameters`, as samples: of a
  tensor of n values those at floor(i * n / k) for i below k = min(n, `sample`), all of them where `sample` is 0;
  gradient_top and gradient_norm are the largest magnitude and the Euclidean norm of each whole tensor;
* trained: the same samples of the adapter after `steps` steps; update_top and update_norm are those of (trained - start);
* losses and gradient norms of every step, and the loss of every row alone.

A step is `accumulation` batches of `batch` rows in file order, right-padded; its loss is the summed cross-entropy over the
supervised tokens of the whole step; then clipping, AdamW, and a cosine schedule with warm-up. Half-precision weights are
widened to f32 before anything is computed.
"""

import json
import math
import random
import sys
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, get_cosine_schedule_with_warmup

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLAN = dict(steps=20, warmup=2, rate=5e-3, decay=0.01, clip=1.0, batch=2, accumulation=2)
ROWS, LOGIT_ROWS = 14, 4

BASES = {
    "parity": dict(vocab=64, hidden=32, heads=4, kv=2, inter=48, layers=2, tied=False, dtype=torch.float32,
                   theta=1e6, eps=1e-6, shard=None, five=False),
    "parity-tied": dict(vocab=96, hidden=56, heads=14, kv=2, inter=40, layers=2, tied=True, dtype=torch.float16,
                        theta=1e6, eps=1e-6, shard=None, five=False),
    "parity-odd": dict(vocab=131, hidden=60, heads=6, kv=3, inter=87, layers=3, tied=True, dtype=torch.bfloat16,
                       theta=1e4, eps=1e-5, shard="70KB", five=True),
}
ADAPTERS = {
    "parity": dict(base="parity", sample=0, lora=dict(r=4, lora_alpha=8, target_modules=ALL)),
    "parity-tied": dict(base="parity-tied", sample=64, lora=dict(r=4, lora_alpha=16, target_modules=ALL)),
    "parity-odd": dict(base="parity-odd", sample=64, lora=dict(r=5, lora_alpha=7.5, target_modules=ALL)),
    "parity-dora": dict(base="parity", sample=96, lora=dict(r=4, lora_alpha=8, target_modules=ALL, use_dora=True)),
    "parity-patterns": dict(base="parity", sample=96, lora=dict(
        r=4, lora_alpha=8, target_modules=[name for name in ALL if name != "k_proj"], use_rslora=True,
        rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6},
        alpha_pattern={"v_proj": 20, "layers.0.self_attn.o_proj": 3})),
}


def draw_base(folder, shape, seed):
    """Random weights at which nothing is degenerate: attention far from even, biases and norms that matter."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda size, deviation: torch.randn(size, generator=generator) * deviation
    config = Qwen2Config(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["inter"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv"],
        max_position_embeddings=64, tie_word_embeddings=shape["tied"], use_sliding_window=False,
        rms_norm_eps=shape["eps"], rope_parameters={"rope_type": "default", "rope_theta": shape["theta"]},
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.copy_(normal(weight.shape, 0.1))
            elif "norm" in name:
                weight.copy_(1 + 0.2 * (2 * torch.rand(weight.shape, generator=generator) - 1))
            elif "embed" in name or "lm_head" in name:
                weight.copy_(normal(weight.shape, 0.3))
            else:
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 0.8
                weight.copy_(normal(weight.shape, gain / math.sqrt(weight.shape[1])))
    model = model.to(shape["dtype"])
    model.save_pretrained(folder, max_shard_size=shape["shard"] or "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if not shape["five"]:  # config.json in the spelling of the published Qwen2.5 checkpoints
        (folder / "config.json").write_text(json.dumps({
            "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
            "hidden_size": shape["hidden"], "initializer_range": 0.02, "intermediate_size": shape["inter"],
            "max_position_embeddings": 64, "max_window_layers": shape["layers"], "model_type": "qwen2",
            "num_attention_heads": shape["heads"], "num_hidden_layers": shape["layers"],
            "num_key_value_heads": shape["kv"], "rms_norm_eps": shape["eps"], "rope_theta": shape["theta"],
            "sliding_window": 64, "tie_word_embeddings": shape["tied"],
            "torch_dtype": str(shape["dtype"]).removeprefix("torch."), "use_cache": True,
            "use_sliding_window": False, "vocab_size": shape["vocab"]}, indent=1) + "\n")


def draw_rows(path, vocab, seed):
    """Noisy repetitions of a short pattern; a masked prompt, and in every third row a masked stretch inside the answer."""
    draw = random.Random(seed)
    rows = []
    for row in range(ROWS):
        length = draw.randint(6, 24)
        pattern = [draw.randrange(vocab) for _ in range(draw.randint(3, 9))]
        ids = [pattern[at % len(pattern)] if draw.random() > 0.1 else draw.randrange(vocab) for at in range(length)]
        masked = set(range(draw.randint(1, length - 3)))
        if row % 3 == 2:
            masked.add(length - 2)
        rows.append({"input_ids": ids, "labels": [-100 if at in masked else id for at, id in enumerate(ids)]})
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    return rows


def load_base(folder):
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def draw_adapter(folder, base, lora, seed):
    """As PEFT begins, then B (and DoRA's magnitudes) moved off their start, so that no gradient is zero."""
    torch.manual_seed(seed)
    model = get_peft_model(load_base(base), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **lora))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
            elif "magnitude" in name:
                weight.mul_(1 + 0.2 * (torch.rand(weight.shape) - 0.5))
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base.name
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def padded(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fill = lambda field, value: torch.tensor([row[field] + [value] * (width - len(row[field])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return fill("input_ids", 0), fill("labels", -100), mask


def summed_loss(model, rows):
    ids, labels, mask = padded(rows)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def supervised(rows):
    return sum(label != -100 for row in rows for label in row["labels"][1:])


def on_disk(name):
    """The name a parameter has in adapter_model.safetensors."""
    return name.replace(".default.weight", "" if "magnitude" in name else ".weight")


def sampled(tensor, count):
    flat = tensor.detach().flatten()
    keep = min(flat.numel(), count or flat.numel())
    return flat[[i * flat.numel() // keep for i in range(keep)]]


def reference(folder, base, sample, rows):
    model = PeftModel.from_pretrained(load_base(base), folder / "adapter", is_trainable=True).train()
    learnt = {on_disk(name): weight for name, weight in model.named_parameters() if weight.requires_grad}
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert learnt.keys() == stored.keys(), learnt.keys() ^ stored.keys()
    names = sorted(learnt)
    start = {name: learnt[name].detach().clone() for name in names}
    assert all(torch.equal(start[name], stored[name]) for name in names)

    places = [sorted({0, len(row["input_ids"]) // 2, len(row["input_ids"]) - 1}) for row in rows[:LOGIT_ROWS]]
    with torch.no_grad():
        ids, _, mask = padded(rows[:LOGIT_ROWS])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logits = torch.cat([logits[row, at] for row, row_places in enumerate(places) for at in row_places])
        row_losses = [summed_loss(model, [row]).item() / supervised([row]) for row in rows]

    optimizer = torch.optim.AdamW(learnt.values(), lr=PLAN["rate"], weight_decay=PLAN["decay"])
    schedule = get_cosine_schedule_with_warmup(optimizer, PLAN["warmup"], PLAN["steps"])
    losses, norms, gradients = [], [], None
    width = PLAN["batch"] * PLAN["accumulation"]
    for step in range(PLAN["steps"]):
        picked = [rows[(step * width + i) % len(rows)] for i in range(width)]
        total = supervised(picked)
        loss = 0.0
        for begin in range(0, width, PLAN["batch"]):
            share = summed_loss(model, picked[begin:begin + PLAN["batch"]]) / total
            share.backward()
            loss += share.item()
        gradients = gradients or {name: learnt[name].grad.clone() for name in names}
        losses.append(loss)
        norms.append(torch.nn.utils.clip_grad_norm_(learnt.values(), PLAN["clip"]).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    updates = {name: learnt[name].detach() - start[name] for name in names}

    every = lambda tensors, of: torch.tensor([of(tensors[name]) for name in names])
    top, norm = lambda tensor: tensor.abs().max().item(), lambda tensor: tensor.double().norm().item()
    save_file({
        "logits": logits.contiguous(),
        "gradients": torch.cat([sampled(gradients[name], sample) for name in names]),
        "gradient_top": every(gradients, top), "gradient_norm": every(gradients, norm),
        "trained": torch.cat([sampled(learnt[name], sample) for name in names]),
        "update_top": every(updates, top), "update_norm": every(updates, norm),
    }, folder / "reference.safetensors")
    lines = {
        "base": "base" if base.parent == folder else f"../{base.parent.name}/base",
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__},
        "plan": PLAN, "sample": sample, "logit_places": places, "row_losses": row_losses,
        "losses": losses, "grad_norms": norms, "parameters": names,
    }
    body = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in lines.items())
    (folder / "reference.json").write_text("{\n" + body + "\n}\n")
    print(f"{folder.name}: loss {losses[0]:.4f} to {losses[-1]:.4f}, norm {norms[0]:.3f}, "
          f"gradients from {min(map(top, gradients.values())):.1e}, mean logit {logits.abs().mean():.2f}")


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    for seed, (name, adapter) in enumerate(ADAPTERS.items()):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        shape = BASES[adapter["base"]]
        base = out / adapter["base"] / "base"
        if adapter["base"] == name:
            draw_base(base, shape, seed)
        rows = draw_rows(folder / "tokens.jsonl", shape["vocab"], seed)
        draw_adapter(folder / "adapter", base, adapter["lora"], seed + 100)
        reference(folder, base, adapter["sample"], rows)


if __name__ == "__main__":
    main()
