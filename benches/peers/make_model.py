#!/usr/bin/env python3
"""A Qwen2 base with random weights, written tensor by tensor: a 7B shape needs little more memory than one block.

    python make_model.py --shape 0.5b --dtype bf16 --out DIR          # config.json and model.safetensors
    python make_model.py --shape 7b --dtype bf16 --shard-gb 4 --out DIR
    python make_model.py --widen DIR --out DIR2                       # the same values in f32
    python make_model.py --shape small --tokenizer --out DIR          # with a tokenizer, for generation

Weights are uniform with deviation 0.02, as Qwen2 is initialised; norms are 1. Needs numpy alone.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

SHAPES = {  # hidden, layers, heads, kv heads, inner, vocabulary, tied
    "small": (512, 8, 8, 2, 1408, 16384, True),
    "packed": (512, 8, 8, 2, 1536, 16384, False),  # widths that the K types of GGUF divide
    "0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, True),
    "3b": (2048, 36, 16, 2, 11008, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
}
BLOCK = 1 << 22
WIDTH = {"F32": 4, "BF16": 2}


def config(shape, dtype):
    hidden, layers, heads, kv, inner, vocab, tied = SHAPES[shape]
    return {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": hidden,
        "initializer_range": 0.02, "intermediate_size": inner, "max_position_embeddings": 32768,
        "max_window_layers": layers, "model_type": "qwen2", "num_attention_heads": heads, "num_hidden_layers": layers,
        "num_key_value_heads": kv, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": tied, "torch_dtype": {"f32": "float32", "bf16": "bfloat16"}[dtype], "use_cache": True,
        "use_sliding_window": False, "vocab_size": vocab,
    }


def tensors(shape):
    """Names and shapes, in the order of the layers."""
    hidden, layers, heads, kv, inner, vocab, tied = SHAPES[shape]
    narrow = hidden // heads * kv
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        for name, width in (("q", hidden), ("k", narrow), ("v", narrow)):
            yield f"{at}.self_attn.{name}_proj.weight", (width, hidden)
            yield f"{at}.self_attn.{name}_proj.bias", (width,)
        yield f"{at}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}.mlp.up_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocab, hidden)


def blocks(name, count, rng, dtype, deviation=0.02):
    """The values of a tensor, block after block, as bytes."""
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        if "norm" in name:
            values = np.ones(size, np.float32)
        else:  # sixteen random bits are more than the eight significant ones of a bf16
            values = rng.integers(-32768, 32768, size, np.int16).astype(np.float32)
            values += np.float32(0.5)
            values *= np.float32(deviation * 3**0.5 / 32768)
        if dtype == "BF16":
            values = ((values.view(np.uint32) + np.uint32(0x8000)) >> 16).astype(np.uint16)
        yield values.data


def write_file(path, entries, dtype, fill):
    """One safetensors file: the length of a JSON header, the header, the bytes of all tensors."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in entries:
        size = int(np.prod(shape)) * WIDTH[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, shape in entries:
            for block in fill(name, int(np.prod(shape))):
                out.write(block)
    return offset


def write(out, entries, dtype, shard_bytes, fill):
    shards, room = [[]], shard_bytes
    for name, shape in entries:
        size = int(np.prod(shape)) * WIDTH[dtype]
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append((name, shape))
        room -= size
    if len(shards) == 1:
        return write_file(out / "model.safetensors", shards[0], dtype, fill)
    files = [f"model-{at + 1:05}-of-{len(shards):05}.safetensors" for at in range(len(shards))]
    total = sum(write_file(out / file, shard, dtype, fill) for file, shard in zip(files, shards))
    index = {"metadata": {"total_size": total},
             "weight_map": {name: file for file, shard in zip(files, shards) for name, _ in shard}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return total


def widen(source, out):
    """The f32 twin of a bf16 folder, file by file."""
    settings = json.loads((source / "config.json").read_text())
    settings["torch_dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(settings, indent=1))
    for index in source.glob("*.index.json"):
        (out / index.name).write_text(index.read_text())
    total = 0
    for path in sorted(source.glob("*.safetensors")):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        halves = np.memmap(path, np.uint16, "r", offset=8 + length)

        def fill(name, count):
            begin = header[name]["data_offsets"][0] // 2
            for at in range(begin, begin + count, BLOCK):
                yield (halves[at:min(at + BLOCK, begin + count)].astype(np.uint32) << 16).data

        entries = [(name, entry["shape"]) for name, entry in header.items()]
        total += write_file(out / path.name, entries, "F32", fill)
    return total


def byte_tokenizer(size):
    """A tokenizer.json of so many tokens, enough to turn answers into text: the 256 bytes, Qwen's special tokens, numbers. The
    one merge is for formats that have no empty lists."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (at for at in range(256) if at not in printable)
    chars = dict(zip(printable, map(chr, printable))) | {byte: chr(256 + at) for at, byte in enumerate(others)}
    vocab = {chars[byte]: byte for byte in range(256)} | {"\u0120w": 259} | {f"\u0120w{at}": at for at in range(260, size)}
    special = [{"id": 256 + at, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for at, text in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                      "merges": [["\u0120", "w"]]}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--shard-gb", type=float, default=1e9, help="a new file after so many GB; one file if not given")
    parser.add_argument("--widen", type=Path, help="a bf16 folder of this script, to be written again in f32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", action="store_true", help="write a tokenizer.json beside the weights")
    parser.add_argument("--deviation", type=float, default=0.02, help="more than 0.02 makes answers less even")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    if args.widen:
        total = widen(args.widen, args.out)
    else:
        (args.out / "config.json").write_text(json.dumps(config(args.shape, args.dtype), indent=1))
        rng, dtype = np.random.Generator(np.random.SFC64(args.seed)), args.dtype.upper()
        fill = lambda name, count: blocks(name, count, rng, dtype, args.deviation)
        total = write(args.out, list(tensors(args.shape)), dtype, int(args.shard_gb * 1e9), fill)
    if args.tokenizer:
        (args.out / "tokenizer.json").write_text(json.dumps(byte_tokenizer(SHAPES[args.shape][5])))
    print(json.dumps({"bytes": total, "seconds": round(time.perf_counter() - begun, 1)}))


if __name__ == "__main__":
    main()
