#!/usr/bin/env python3
"""Whether our logits of a GGUF file are llama.cpp's.

    python llama_logits.py pack F32.gguf OUT.gguf --type q4_k_m       # with llama.cpp's own quantiser
    python llama_logits.py compare MODEL.gguf [--plain FOLDER]        # ours, llama.cpp's, and ours of the plain weights

`compare` lets llama.cpp's server continue rows of tokens greedily, gives the same rows to ours (`../logits.rs`) and prints
Markdown: how many of llama.cpp's tokens are our most likely ones too, what ours lacks where they are not, and how far the
logarithms of the probabilities lie apart. Needs xllamacpp and gguf.
"""

import argparse
import ctypes
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP = 20
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def more_bits(layer, layers):
    """The layers that llama.cpp's mixtures give more bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def type_of(name, width, wanted, layers):
    """The type of a matrix, as `llama-quantize` chooses it for this architecture."""
    kind = wanted.upper()
    if kind == "Q4_K_M":
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        lifted = name in ("output.weight", "token_embd.weight") or (
            name.endswith(("attn_v.weight", "ffn_down.weight")) and more_bits(layer, layers))
        kind = "Q6_K" if lifted else "Q4_K"
    return FALLBACK[kind] if kind in FALLBACK and width % 256 else kind


def pack(source, out, wanted):
    import gguf
    import numpy as np
    import xllamacpp

    library = Path(xllamacpp.__file__).parent / "xllamacpp.abi3.so"
    quantise = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    floats = ctypes.POINTER(ctypes.c_float)
    quantise.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, *[ctypes.c_int64] * 3, floats]
    reader = gguf.GGUFReader(source)
    layers = int(reader.get_field("qwen2.block_count").contents())
    writer = gguf.GGUFWriter(out, "qwen2")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=of)
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        width, rows = (int(size) for size in tensor.shape)
        kind = gguf.GGMLQuantizationType[type_of(tensor.name, width, wanted, layers)]
        values = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        packed = np.empty((rows, width // block * size), np.uint8)
        written = quantise(kind, values.ctypes.data_as(floats), packed.ctypes.data, 0, rows, width, None)
        assert written == packed.nbytes, tensor.name
        writer.add_tensor(tensor.name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(path, threads, out):
    """The server, in a process of its own, until its input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.ui = 2048, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # Its cache and its attention in f32, so that what is left is the products.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    server = xllamacpp.Server(params)
    Path(out).write_text(server.listening_address)
    sys.stdin.read()
    import os
    os._exit(0)


def ask(address, row, count):
    """The answer's tokens, each with the logarithms of the most likely ones. One call a token: in a longer answer the server
    leaves out tokens that end in the middle of a letter, of which it tells no probabilities."""
    answer = []
    for _ in range(count):
        body = {"prompt": row + [token for token, _ in answer], "n_predict": 1, "temperature": 0, "n_probs": TOP,
                "cache_prompt": True, "repeat_penalty": 1.0, "samplers": ["top_k"], "top_k": 1,
                "return_tokens": True}
        request = urllib.request.Request(f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as reply:
            reply = json.load(reply)
        [token] = reply["tokens"]
        told = {top["id"]: top["logprob"] for place in reply.get("completion_probabilities", [])
                for top in place["top_logprobs"]}
        answer.append((token, told))
    return answer


def ours(model, rows, program):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for prompt, answer in rows:
            tokens = prompt + [token for token, _ in answer[:-1]]
            file.write(json.dumps({"tokens": tokens, "from": len(prompt) - 1}) + "\n")
        file.flush()
        start = [program] if program else ["cargo", "bench", "-q", "-p", "because-benches", "--bench", "logits", "--"]
        command = [*start, Path(model).resolve(), file.name]
        done = subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True, text=True)
    print(done.stderr.strip().splitlines()[-1])
    return [[dict(map(tuple, place["top"])) for place in json.loads(line)] for line in done.stdout.splitlines()]


def table(name, rows, ours_of):
    """One line: tokens alike, the gap where not, and the differences of what both told of."""
    alike = places = 0
    gaps, apart, first = [], [], []
    for (_, answer), tops in zip(rows, ours_of):
        until = len(answer)
        for at, ((token, theirs), top) in enumerate(zip(answer, tops)):
            best = max(top, key=top.get)
            places += 1
            alike += best == token
            if best != token:
                until = min(until, at)
                gaps.append(top[best] - top.get(token, float("-inf")))
            apart += [abs(top[id] - log) for id, log in theirs.items() if id in top]
        first.append(until)
    mean = sum(apart) / len(apart)
    empty = sum(not theirs for _, answer in rows for _, theirs in answer)
    if empty:
        print(f"{empty} places without probabilities")
    gap = f"{max(gaps):.5f}" if gaps else "-"
    print(f"| {name} | {alike} of {places} | {min(first)} | {gap} | {mean:.6f} | {max(apart):.6f} | {len(apart)} |", flush=True)


def compare(model, plain, prompts, count, vocabulary, threads, program):
    draw = random.Random(7)
    rows = [[draw.randrange(3, vocabulary) for _ in range(draw.randrange(5, 200))] for _ in range(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "address"
        command = [sys.executable, __file__, "serve", str(model), str(place), "--threads", str(threads)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            while not place.exists() or not place.read_text():
                if server.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.1)
            rows = [(row, ask(place.read_text(), row, count)) for row in rows]
        finally:
            server.stdin.close()
            server.wait()
    gguf = ours(model, rows, program)
    floats = ours(plain, rows, program) if plain else None
    print("\n| | llama.cpp's token is our first | first other place | largest gap there | mean apart | most apart | compared |")
    print("|---|---|---|---|---|---|---|")
    table("ours, same file", rows, gguf)
    if floats:
        table("ours, plain weights", rows, floats)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack")
    one.add_argument("source", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--type", default="q4_k_m")
    one = commands.add_parser("serve")
    one.add_argument("model", type=Path)
    one.add_argument("address", type=Path)
    one.add_argument("--threads", type=int, default=2)
    one = commands.add_parser("compare")
    one.add_argument("model", type=Path)
    one.add_argument("--plain", type=Path, help="a folder with the weights before they were packed")
    one.add_argument("--prompts", type=int, default=8)
    one.add_argument("--tokens", type=int, default=60)
    one.add_argument("--vocabulary", type=int, default=250, help="prompts are drawn from so many tokens")
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--program", type=Path, help="../logits.rs where it was built; cargo bench if not given")
    args = parser.parse_args()
    match args.command:
        case "pack":
            pack(args.source, args.out, args.type)
        case "serve":
            serve(args.model, args.threads, args.address)
        case _:
            compare(args.model, args.plain, args.prompts, args.tokens, args.vocabulary, args.threads,
                    args.program)


if __name__ == "__main__":
    main()
