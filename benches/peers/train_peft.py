#!/usr/bin/env python3
"""LoRA training with PyTorch, transformers and PEFT, the way PEFT's own examples do it.

Batches are padded on the right and the model computes its own loss from `labels=`; AdamW, clipping to 1, a cosine schedule
with warm-up. The first step is not timed. Prints one JSON object: seconds and loss of each step, tokens a second counted on real
tokens and on padded positions, the peak of resident memory.
"""

import argparse
import json
import resource
import time

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fill = lambda values, pad: torch.tensor([list(line) + [pad] * (width - len(line)) for line in values])
    return {
        "input_ids": fill((row["input_ids"] for row in rows), 0),
        "attention_mask": fill(([1] * len(row["input_ids"]) for row in rows), 0),
        "labels": fill((row["labels"] for row in rows), -100),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--adapter", help="the adapter to begin with; a new one if not given")
    parser.add_argument("--save-start", help="write the adapter as it is before the first step here")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of the base in memory")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    transformers.logging.disable_progress_bar()

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=dtype)
    if args.adapter:
        model = PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    else:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=args.alpha,
                                                 lora_dropout=0.0, bias="none", target_modules=TARGETS))
    if args.save_start:
        model.save_pretrained(args.save_start)
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    model.train()
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=args.rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.warmup, args.steps)
    with open(args.data) as file:
        rows = [json.loads(line) for line in file if line.strip()]

    losses, seconds, real, padded = [], [], [], []
    for step in range(args.steps):
        begun = time.perf_counter()
        picked = [rows[(step * args.batch + at) % len(rows)] for at in range(args.batch)]
        batch = collate(picked)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begun)
        real.append(sum(len(row["input_ids"]) for row in picked))
        padded.append(batch["input_ids"].numel())
    timed = sum(seconds[1:])
    print(json.dumps({
        "losses": losses, "seconds": seconds,
        "tokens_per_second": sum(real[1:]) / timed if timed else None,
        "padded_tokens_per_second": sum(padded[1:]) / timed if timed else None,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "trainable_parameters": sum(weight.numel() for weight in learnt),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    }))


if __name__ == "__main__":
    main()
