#!/usr/bin/env python3
"""The rate of PyTorch's own f32 matrix product (MKL on x86), n x n x n, in GFLOP/s: what a machine can reach at best."""

import argparse
import json
import statistics
import time

import torch


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    a, b = torch.randn(args.n, args.n), torch.randn(args.n, args.n)
    rates = []
    for _ in range(args.repeat + 1):
        begun = time.perf_counter()
        a @ b.t()
        rates.append(2 * args.n**3 / (time.perf_counter() - begun) / 1e9)
    rates = rates[1:]
    print(json.dumps({"best": max(rates), "median": statistics.median(rates), "mkl": torch.backends.mkl.is_available()}))


if __name__ == "__main__":
    main()
