#!/usr/bin/env python3
"""`because train` against PyTorch + transformers + PEFT: the same base, rows, first adapter and schedule, in turns.

    python train.py --because ../../target/release/because --workload small task --profiles ../../target/quickstart/sft.train.jsonl

Each run is a process of its own on the same cores. A pair is one run of the peer and one of ours, one after the other, and
ratios are taken within pairs, so that what else the machine does weighs on both. Prints Markdown; README.md says how to read it.
"""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORKLOADS = {
    "small": dict(shape="small", dtype="f32", rows=["--full", "--length", "256"]),
    "task": dict(shape="0.5b", dtype="bf16", rows=None),
}


class Machine:
    """Runs commands on the first cores this process may use, and says what each of them needed."""

    def __init__(self, threads):
        self.threads = threads
        self.cores = sorted(os.sched_getaffinity(0))[:threads] if hasattr(os, "sched_getaffinity") else None
        names = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self.environment = os.environ | {name: str(threads) for name in names}

    def run(self, command, cwd=None):
        """Standard output, and the peak of resident memory as the kernel counted it."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=errors, cwd=cwd,
                                       env=self.environment, preexec_fn=self.pin if self.cores else None)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0), errors.seek(0)
            if process.returncode:
                raise SystemExit(f"{shlex.join(map(str, command))} ended with {process.returncode}:\n{errors.read()[-2000:]}")
            scale = 1 if sys.platform == "darwin" else 1024
            return out.read(), usage.ru_maxrss * scale

    def pin(self):
        os.sched_setaffinity(0, self.cores)


def last_json(text):
    return json.loads(text.strip().splitlines()[-1])


def script(name, *arguments):
    return [sys.executable, HERE / name, *arguments]


class Inputs:
    """The files of one workload, made once in the work folder."""

    def __init__(self, name, args, machine):
        workload = WORKLOADS[name]
        self.folder = args.work / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base, self.rows_file, self.adapter = self.folder / "base", self.folder / "rows.jsonl", self.folder / "start"
        if not (self.base / "config.json").is_file():
            machine.run(script("make_model.py", "--shape", workload["shape"], "--dtype", workload["dtype"], "--out", self.base))
        self.our_base = self.base
        if workload["dtype"] == "bf16" and args.base_dtype == "f32":
            self.our_base = self.folder / "base-f32"
            if not (self.our_base / "config.json").is_file():
                machine.run(script("make_model.py", "--widen", self.base, "--out", self.our_base))
        self.config = json.loads((self.base / "config.json").read_text())
        count = args.batch * args.steps
        rows = workload["rows"] or ["--task", *args.profiles, "--join", args.join, "--answer", args.answer,
                                    *(["--spread"] if args.spread else [])]
        made, _ = machine.run(script("make_rows.py", *rows, "--rows", count, "--vocab", self.config["vocab_size"],
                                     "--out", self.rows_file))
        self.about = last_json(made)
        self.rows = [json.loads(line) for line in self.rows_file.read_text().splitlines()]
        machine.run(script("train_peft.py", "--base", self.base, "--data", self.rows_file, "--steps", 0,
                           "--save-start", self.adapter, "--threads", args.threads))

    def batches(self, args):
        for step in range(args.steps):
            yield [self.rows[(step * args.batch + at) % len(self.rows)] for at in range(args.batch)]


def operations(rows, config, rank):
    """Floating-point operations of a step on these rows, without what need not be done.

    A projection's matrix meets every token three times in training and once more for the low-rank pair; frozen weights have
    no gradient of their own, which leaves 4 operations a weight and token, and 6 a weight and token for the pair. Attention is
    causal: half of t x t scores, two products forward and four backward. What all rows begin with is counted once, the last
    layer past its attention and the output projection for supervised tokens alone, and what follows the last of them not at
    all.
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    reading, writing = [(hidden, hidden)] + [(hidden, narrow)] * 2, [(hidden, hidden)] + [(hidden, inner)] * 3
    cost = lambda shapes: sum(4 * a * b + 6 * rank * (a + b) for a, b in shapes)
    learnt = [[at for at, label in enumerate(row["labels"]) if label != -100 and at > 0] for row in rows]
    lengths = [targets[-1] for targets in learnt]
    shared = 0
    while len(rows) > 1 and shared < min(lengths) - 1 and len({row["input_ids"][shared] for row in rows}) == 1:
        shared += 1
    shared = shared if shared >= 8 else 0
    tokens = sum(lengths) - (len(rows) - 1) * shared
    squares = sum(length**2 - shared**2 for length in lengths) + shared**2
    supervised = sum(map(len, learnt))
    return (
        tokens * (layers * cost(reading) + (layers - 1) * cost(writing))
        + supervised * cost(writing)
        + 6 * layers * hidden * squares
        + supervised * 4 * config["vocab_size"] * hidden
    )


def peer(inputs, args, machine):
    out, rss = machine.run(script(
        "train_peft.py", "--base", inputs.base, "--data", inputs.rows_file, "--adapter", inputs.adapter, "--steps",
        args.steps, "--batch", args.batch, "--dtype", args.peer_dtype, "--threads", args.threads, *shlex.split(args.peer_args)))
    result = last_json(out)
    return dict(seconds=result["seconds"], losses=result["losses"], rss=rss, versions=result["versions"])


def our_command(inputs, args, log, out):
    return [args.because, "train", "--base", inputs.our_base, "--data", inputs.rows_file, "--init-adapter", inputs.adapter,
            "--out", out, "--max-steps", args.steps, "--batch-size", args.batch, "--learning-rate", "1e-3", "--warmup-steps", 2,
            "--max-length", 4096, "--no-shuffle", "--log", log, "--json", "--quiet", *shlex.split(args.our_args)]


def ours(inputs, args, machine):
    with tempfile.TemporaryDirectory(dir=inputs.folder) as folder:
        log = Path(folder) / "log.jsonl"
        _, rss = machine.run(our_command(inputs, args, log, Path(folder) / "adapter"))
        steps = [json.loads(line) for line in log.read_text().splitlines()]
    return dict(seconds=[step["seconds"] for step in steps], losses=[step["loss"] for step in steps], rss=rss)


def largest_difference(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def compare(name, args, machine):
    inputs = Inputs(name, args, machine)
    timed = list(inputs.batches(args))[1:]
    tokens = sum(len(row["input_ids"]) for batch in timed for row in batch)
    padded = sum(len(batch) * max(len(row["input_ids"]) for row in batch) for batch in timed)
    work = sum(operations(batch, inputs.config, args.rank) for batch in timed)
    pairs = []
    matmul = lambda: last_json(machine.run(script("matmul.py", "--threads", args.threads))[0])
    products = [matmul()]
    for pair in range(args.pairs):
        theirs, mine = peer(inputs, args, machine), ours(inputs, args, machine)
        products.append(matmul())
        first = largest_difference(mine["losses"][:1], theirs["losses"][:1])
        if first > (1e-4 if args.peer_dtype == "f32" else 2e-2):
            raise SystemExit(f"{name}: first losses {mine['losses'][0]} and {theirs['losses'][0]} are {first:.1e} apart")
        pairs.append((theirs, mine))
        rates = [tokens / sum(run["seconds"][1:]) for run in (theirs, mine)]
        print(f"{name} {pair + 1}/{args.pairs}: {rates[0]:.1f} and {rates[1]:.1f} tokens/s", file=sys.stderr)

    rate = lambda run: tokens / sum(run["seconds"][1:])
    median = lambda pick: statistics.median(pick(pair) for pair in pairs)
    ratios = sorted(rate(mine) / rate(theirs) for theirs, mine in pairs)
    memory = [median(lambda pair, side=side: pair[side]["rss"]) for side in (0, 1)]
    rates = [median(lambda pair, side=side: rate(pair[side])) for side in (0, 1)]
    gflops = rates[1] * work / tokens / 1e9
    # What a large product reached just after each of our runs: shared machines change their speed from minute to minute.
    shares = sorted(rate(mine) * work / tokens / 1e9 / product["median"] for (_, mine), product in zip(pairs, products[1:]))
    apart = max(largest_difference(mine["losses"], theirs["losses"]) for theirs, mine in pairs)
    row = [name, f"{rates[0]:.1f}", f"{rates[1]:.1f}",
           f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})",
           f"{memory[0] / 2**20:.0f}", f"{memory[1] / 2**20:.0f}", f"**{memory[1] / memory[0]:.2f}**", f"{apart:.1e}"]
    about = inputs.about
    notes = [f"`{name}`: {args.batch} rows a step, {args.steps} steps of which the first is not timed; rows of {about['min']} to "
             f"{about['max']} tokens, mean {about['mean_length']} (deviation {about['deviation']}), {about['mean_supervised']} "
             f"supervised; padding adds {padded / tokens - 1:.0%} to what the peer computes. Base on disk: peer "
             f"{inputs.config['torch_dtype']} computed in {args.peer_dtype}, ours "
             f"{json.loads((inputs.our_base / 'config.json').read_text())['torch_dtype']}.",
             f"`{shlex.join(map(str, our_command(inputs, args, 'LOG', 'OUT')))}`"]
    row += [f"{gflops:.1f}", f"**{statistics.median(shares):.0%}** ({shares[0]:.0%} to {shares[-1]:.0%})"]
    return row, gflops, notes, pairs[0][0]["versions"], max(product["best"] for product in products)


def gemm_rate(machine):
    """The best rate of benches/matmul.rs, which divan prints first among the rates."""
    out, _ = machine.run(["cargo", "bench", "-q", "-p", "because-benches", "--bench", "matmul"], cwd=ROOT)
    value, unit = re.search(r"([\d.]+) ([GT])item/s", out).groups()
    return float(value) * {"G": 1, "T": 1000}[unit]


def processor():
    try:
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--because", type=Path, required=True, help="the binary: cargo build --release -p because-cli")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["small"])
    parser.add_argument("--work", type=Path, default=ROOT / "target/peers", help="where inputs are made and kept")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profiles", nargs="+", metavar="FILE", help="sft.*.jsonl files, for the workload `task`")
    parser.add_argument("--join", type=int, default=2, help="records of these files to one row")
    parser.add_argument("--spread", action="store_true", help="from 1 to 2 JOIN - 1 of them")
    parser.add_argument("--answer", type=int, default=50, help="supervised tokens of a row, about")
    parser.add_argument("--peer-dtype", choices=["f32", "bf16"], default="f32", help="what the peer holds the base in")
    parser.add_argument("--base-dtype", choices=["bf16", "f32"], default="bf16", help="what we read for `task`, of the same values")
    parser.add_argument("--peer-args", default="", help="more arguments for train_peft.py, in one string")
    parser.add_argument("--our-args", default="", help="more arguments for `because train`, in one string")
    parser.add_argument("--gemm", action="store_true", help="measure benches/matmul.rs as well (builds it with cargo)")
    args = parser.parse_args()
    if "task" in args.workload and not args.profiles:
        parser.error("the workload `task` needs --profiles; the quickstart example writes target/quickstart/sft.train.jsonl")
    if args.pairs < 1 or args.steps < 2:
        parser.error("at least one pair and two steps are needed: the first step is not timed")
    args.because, args.work, args.rank = args.because.resolve(), args.work.resolve(), 8
    args.profiles = [Path(file).resolve() for file in args.profiles or []]

    machine = Machine(args.threads)
    rows, notes, mkl = [], [], []
    for name in args.workload:
        row, gflops, more, versions, best = compare(name, args, machine)
        rows.append((row, gflops))
        notes += more
        mkl.append(best)
    roofs = {"MKL's best": max(mkl)} | ({"gemm's best": gemm_rate(machine)} if args.gemm else {})

    header = ["workload", "PEFT tokens/s", "ours tokens/s", "ratio (range over pairs)", "PEFT MiB", "ours MiB", "ratio",
              "losses apart", "ours GFLOP/s", "of MKL's rate at the time (range over pairs)", *(f"of {name}" for name in roofs)]
    rows = [row + [*(f"{gflops / roof:.0%}" for roof in roofs.values())] for row, gflops in rows]
    for line in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(line) + " |")
    print()
    for note in notes:
        print(f"- {note}")
    rates = ", ".join(f"{name} {rate:.1f}" for name, rate in roofs.items())
    print(f"- Matrix product 2048^3 in f32, GFLOP/s: {rates}.")
    print(f"- {args.pairs} pairs in turns, {args.threads} threads each, {processor()}; Python {platform.python_version()}, "
          + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    print(f"- `{shlex.join(['python', 'train.py', *sys.argv[1:]])}`")


if __name__ == "__main__":
    main()
