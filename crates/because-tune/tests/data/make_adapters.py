#!/usr/bin/env python3
"""Writes the adapters that the tests of reading and writing compare with, as PEFT saves them.

    PYTHONHASHSEED=0 python make_adapters.py [FOLDER]

Needs torch, transformers and peft; the files here came from torch 2.15.0, transformers 5.23.0 and peft 0.21.2. The base is
the one in tests/data/parity/base. All values of the adapters are drawn, B and the magnitudes included, so that no
tensor could be mistaken for its initial value.

    python make_adapters.py --check MADE WRITTEN

compares two folders of such adapters through PEFT: settings, keys, values and logits.
"""
import json
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

HERE = Path(__file__).parent
BASE = HERE / "parity" / "base"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]

VARIANTS = {
    "plain": dict(target_modules=ALL, lora_dropout=0.05),
    "rslora": dict(target_modules=["q_proj", "v_proj"], use_rslora=True),
    "dora": dict(target_modules=ALL, use_dora=True),
    "patterns": dict(
        target_modules=ALL,
        use_rslora=True,
        rank_pattern={"down_proj": 3, r"layers\.1\.self_attn\.[qk]_proj": 1, "^model.layers.0.mlp.up_proj": 5},
        alpha_pattern={"self_attn.v_proj": 2.5, r"layers\.\d+\.mlp\..*": 7},
    ),
    "regex": dict(target_modules=r"model\.layers\.(?:0\.self_attn\.(?!o_)\w_proj|1\.mlp\.(?P<half>gate|up)_proj)"),
    "layers": dict(target_modules=["self_attn.o_proj", "layers.1.mlp.up_proj", "down_proj"], layers_to_transform=[1]),
    "exclude": dict(target_modules=ALL, exclude_modules=["o_proj", "layers.0.mlp.gate_proj"]),
    "exclude_regex": dict(target_modules="all-linear", exclude_modules=r".*\.0\.mlp\..*|.*k_proj"),
    "bf16": dict(target_modules=["q_proj"]),
    "f16": dict(target_modules=["q_proj"]),
}


def base():
    return Qwen2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def make(folder):
    for name, settings in VARIANTS.items():
        torch.manual_seed(0)
        config = LoraConfig(**{"r": 2, "lora_alpha": 6, "bias": "none", "task_type": "CAUSAL_LM", **settings})
        model = get_peft_model(base(), config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_magnitude" in key:
                    parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
                elif "lora_" in key:
                    parameter.normal_(0, 0.1)
        out = folder / name
        # A base's path on the machine of the day says nothing about an adapter.
        model.peft_config["default"].base_model_name_or_path = "base"
        model.save_pretrained(out)
        (out / "README.md").unlink(missing_ok=True)
        if name in ("bf16", "f16"):
            half = {"bf16": torch.bfloat16, "f16": torch.float16}[name]
            file = out / "adapter_model.safetensors"
            save_file({key: value.to(half) for key, value in load_file(file).items()}, file, {"format": "pt"})
        print(name, sum(file.stat().st_size for file in out.iterdir()), "bytes")


def check(made, written):
    ids = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))

    def logits(path):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            config = PeftConfig.from_pretrained(path)
            # Loading a second time tells which keys are missing or superfluous.
            model = PeftModel.from_pretrained(base(), path).eval()
            result = model.load_adapter(path, adapter_name="again")
        with torch.no_grad():
            out = model(input_ids=ids).logits
        return config, result, out, [str(warning.message) for warning in told]

    fine = True
    for name in VARIANTS:
        (a, _, left, _), (b, result, right, told) = logits(made / name), logits(written / name)
        a, b = a.to_dict(), b.to_dict()
        settings = {key: (a[key], b[key]) for key in a if a[key] != b[key]}
        tensors, ours = load_file(made / name / "adapter_model.safetensors"), load_file(
            written / name / "adapter_model.safetensors"
        )
        same = tensors.keys() == ours.keys() and all(torch.equal(tensors[key].float(), ours[key]) for key in tensors)
        told = [text for text in told if "already" not in text.lower()]
        row = dict(
            adapter=name,
            tensors=len(ours),
            same_tensors=same,
            missing=[key for key in result.missing_keys if "lora" in key],
            unexpected=list(result.unexpected_keys),
            logits_off=float((left - right).abs().max()),
            other_settings=settings,
            warnings=told,
        )
        fine &= same and not row["missing"] and not row["unexpected"] and row["logits_off"] == 0 and not settings
        print(json.dumps(row, default=str))
    print("all the same" if fine else "NOT the same")
    return 0 if fine else 1


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(check(*map(Path, sys.argv[2:4])))
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "adapters")
