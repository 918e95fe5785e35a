#!/usr/bin/env python3
"""The peer of ../generate.rs for GGUF files, which starts it: greedy answers by llama.cpp's server, all asked at once.

    python llama_server.py WORK.json          # prints one line of JSON

The server runs in a process of its own, with two threads, a slot for each prompt, and nothing kept between prompts. Needs
xllamacpp.
"""

import http.client
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def serve(model, rows, context, address):
    """Until its input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.ui = context * rows, rows, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(params)
    Path(address).write_text(server.listening_address)
    sys.stdin.read()
    os._exit(0)


def ask(address, prompt, count):
    """Seconds to the first token and to the last, and how many there were."""
    body = {"prompt": prompt, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": True,
            "repeat_penalty": 1.0, "samplers": ["top_k"], "top_k": 1, "return_tokens": True}
    begun, first, tokens = time.perf_counter(), None, []
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=600)
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if line.startswith(b"data: "):
            tokens += json.loads(line[6:]).get("tokens", [])
            if tokens and first is None:
                first = time.perf_counter() - begun
    return first, time.perf_counter() - begun, tokens


def main():
    if sys.argv[1] == "serve":
        return serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    work = json.loads(Path(sys.argv[1]).read_text())
    prompts, answer = work["prompts"], work["answer"]
    context = -(-(max(map(len, prompts)) + answer + 8) // 256) * 256
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "address"
        command = [sys.executable, __file__, "serve", work["base"], str(len(prompts)), str(context), str(place)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not place.exists() or not place.read_text():
            assert server.poll() is None, "the server did not start"
            time.sleep(0.1)
        address = place.read_text()
        ask(address, prompts[0][-20:], 2)
        replies = [None] * len(prompts)

        def one(at):
            replies[at] = ask(address, prompts[at], answer)

        threads = [threading.Thread(target=one, args=(at,)) for at in range(len(prompts))]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        server.stdin.close()
        server.wait()
    first = [reply[0] for reply in replies]
    ids = [reply[2] for reply in replies]
    # Tokens that end inside of a character are told late or not at all.
    print(json.dumps({
        "seconds": seconds, "first_token_seconds": sum(first) / len(first), "prompts_seconds": max(first),
        "tokens": answer * len(prompts), "cached_share": 0.0, "ids": ids,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
