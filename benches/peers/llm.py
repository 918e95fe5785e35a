"""The same chats as `../llm.rs`, through a Python client; prints what they took as one line of JSON.

    python3 llm.py openai|litellm URL CONCURRENCY CALLS REQUEST

Makes its own environment with both clients on the first run, in target/llm-peers-venv.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ["openai==2.54.0", "litellm==1.106.2"]
VENV = Path(__file__).resolve().parents[2] / "target" / "llm-peers-venv"


def enter_venv():
    python = VENV / "bin" / "python"
    if Path(sys.prefix) == VENV:
        return
    if not (VENV / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True, stdout=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr)
        (VENV / ".ready").touch()
    os.execv(python, [str(python), *sys.argv])


enter_venv()

import asyncio  # noqa: E402
import resource  # noqa: E402
import time  # noqa: E402


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def body(request, n):
    """The request as it goes over the wire, told from others by its number."""
    system, user = (message["content"] for message in request["messages"])
    schema = {**request["schema"], "strict": True}
    return {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": user.replace("Review 0:", f"Review {n}:")},
        ],
        "seed": request["seed"],
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def client(name, url):
    """A function that sends one request and gives the answer's text."""
    if name == "openai":
        import httpx
        from openai import AsyncOpenAI

        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
        openai = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=httpx.AsyncClient(limits=limits))

        async def send(request):
            answer = await openai.chat.completions.create(model="served", **request)
            return answer.choices[0].message.content

    else:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        import litellm

        litellm.telemetry = False

        async def send(request):
            answer = await litellm.acompletion(
                model="openai/served", api_base=url, api_key="none", num_retries=0, max_retries=0, **request
            )
            return answer.choices[0].message.content

    return send


async def run(send, concurrency, numbers, request):
    numbers = iter(numbers)

    async def worker():
        for n in numbers:
            answer = await send(body(request, n))
            assert '"stars":4' in answer, answer

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def main():
    name, url, concurrency, calls, request = sys.argv[1:]
    concurrency, calls, request = int(concurrency), int(calls), json.loads(request)
    send = client(name, url)
    await run(send, concurrency, range(500_000_000, 500_000_000 + 2 * concurrency), request)
    begun, before = time.perf_counter(), cpu()
    await run(send, concurrency, range(calls), request)
    print(json.dumps({"calls": calls, "seconds": time.perf_counter() - begun, "cpu_seconds": cpu() - before}))


asyncio.run(main())
