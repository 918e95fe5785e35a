"""Asks `because serve` what other programs ask, through OpenAI's own Python client, and fails where an answer is not right.

    because serve --base BASE [--adapter DIR]        # in another terminal
    python3 benches/peers/openai_client.py http://127.0.0.1:8080/v1 [MODEL]

Where the server asks for a key (--api-key-env), it is taken from SERVE_KEY.

Makes its own environment with the client on the first run, in target/llm-peers-venv, which `llm.py` shares.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parents[2] / "target" / "llm-peers-venv"


def enter_venv():
    if Path(sys.prefix) == VENV:
        return
    try:
        import openai  # noqa: F401
    except ImportError:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True, stdout=sys.stderr)
        python = str(VENV / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "openai==2.54.0"], check=True, stdout=sys.stderr)
        os.execv(python, [python, *sys.argv])


enter_venv()

import asyncio  # noqa: E402
import time  # noqa: E402
import urllib.error  # noqa: E402
import urllib.request  # noqa: E402

import openai  # noqa: E402

URL = sys.argv[1]
ROOT = URL.removesuffix("/v1")
CLIENT = openai.OpenAI(base_url=URL, api_key=os.environ.get("SERVE_KEY", "none"), max_retries=0)
TURNS = [
    {"role": "system", "content": "Say in one sentence why the item fits the user."},
    {"role": "user", "content": "The user likes quiet cafes. The item is a reading room with coffee."},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "summary": {"type": "string", "maxLength": 40},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"enum": ["quiet", "cheap", "near"]}, "maxItems": 2},
    },
    "required": ["summary", "score", "tags"],
    "additionalProperties": False,
}


def refused(kind, **changes):
    asked = {"model": MODEL, "messages": TURNS, "max_tokens": 8, **changes}
    try:
        CLIENT.chat.completions.create(**asked)
    except kind as error:
        print(f"{kind.__name__}: {error.body['message'] if isinstance(error.body, dict) else error}"[:160])
        return error
    raise SystemExit(f"{list(changes)} was answered and should have been refused with {kind.__name__}")


def raw(path, body=None, **headers):
    """The status of a request that the client would not send, and the object that came."""
    headers = {"Authorization": f"Bearer {CLIENT.api_key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(ROOT + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def chat(messages, **changes):
    return CLIENT.chat.completions.create(model=MODEL, messages=messages, **{"max_tokens": 24, **changes}).choices[0]


models = [model.id for model in CLIENT.models.list()]
MODEL = sys.argv[2] if len(sys.argv) > 2 else models[0]
print("models:", ", ".join(models))
assert CLIENT.models.retrieve(MODEL).id == MODEL
assert raw("/models")[1]["data"][0]["id"] == models[0]

whole = CLIENT.chat.completions.create(model=MODEL, messages=TURNS, max_tokens=40)
print("chat:", repr(whole.choices[0].message.content), whole.choices[0].finish_reason, whole.usage.total_tokens, "tokens")
assert whole.usage.completion_tokens <= 40 and whole.model == MODEL

text, last = "", None
begun = time.monotonic()
first = None
for chunk in CLIENT.chat.completions.create(
    model=MODEL, messages=TURNS, max_tokens=40, stream=True, stream_options={"include_usage": True}
):
    for choice in chunk.choices:
        text += choice.delta.content or ""
        first = first or time.monotonic() - begun
        last = choice.finish_reason or last
    usage = chunk.usage
assert text == whole.choices[0].message.content, (text, whole)
assert last == whole.choices[0].finish_reason
assert usage.completion_tokens == whole.usage.completion_tokens
print(f"stream: the same text, first event after {first * 1000:.0f} ms, {usage.prompt_tokens_details.cached_tokens} tokens cached")

parts = [{**turn, "content": [{"type": "text", "text": word} for word in turn["content"].split(" ")]} for turn in TURNS]
for turn in parts:
    for part in turn["content"][1:]:
        part["text"] = " " + part["text"]
parts[0]["role"] = "developer"
said = chat(TURNS).message.content
assert chat(parts).message.content == said
print("parts and the developer role: the same answer")
stop = said[len(said) // 2 :][:2]
stopped = chat(TURNS, stop=stop)
assert stop not in stopped.message.content and said.startswith(stopped.message.content), (stop, stopped)
assert stopped.finish_reason == "stop"
print("stop:", repr(stop), "ends", repr(stopped.message.content))
one, same = (chat(TURNS, temperature=1.0, seed=7).message.content for _ in range(2))
assert one == same
assert chat(TURNS, presence_penalty=0, logprobs=False, tools=[], seed=-1).message.content == said

for seed in range(3):
    held = CLIENT.chat.completions.create(
        model=MODEL, messages=TURNS, max_tokens=300, temperature=1.2, seed=seed,
        response_format={"type": "json_schema", "json_schema": {"name": "why", "strict": True, "schema": SCHEMA}},
    )
    found = json.loads(held.choices[0].message.content)
    assert set(found) == {"summary", "score", "tags"} and 1 <= found["score"] <= 5 and len(found["summary"]) <= 40, found
    assert set(found["tags"]) <= {"quiet", "cheap", "near"}, found
    print("schema:", json.dumps(found)[:120])
free = CLIENT.chat.completions.create(
    model=MODEL, messages=TURNS, max_tokens=60, response_format={"type": "json_object"}
)
assert isinstance(json.loads(free.choices[0].message.content), dict)
print("json_object:", free.choices[0].message.content[:80])


async def many():
    client = openai.AsyncOpenAI(base_url=URL, api_key=CLIENT.api_key, max_retries=0)
    asks = [
        client.chat.completions.create(
            model=MODEL, messages=[TURNS[0], {"role": "user", "content": f"The item is number {item}."}], max_tokens=24
        )
        for item in range(16)
    ]
    begun = time.monotonic()
    answers = await asyncio.gather(*asks)
    seconds = time.monotonic() - begun
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    cached = sum(answer.usage.prompt_tokens_details.cached_tokens for answer in answers)
    prompts = sum(answer.usage.prompt_tokens for answer in answers)
    print(f"16 at once: {tokens} tokens in {seconds:.2f} s, {cached} of {prompts} prompt tokens cached")


asyncio.run(many())
assert refused(openai.NotFoundError, model="nobody").code == "model_not_found"
assert refused(openai.BadRequestError, temperature=-1).param == "temperature"
assert refused(openai.BadRequestError, n=2).param == "n"
tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
assert refused(openai.BadRequestError, tools=[tool]).param == "tools"
assert refused(openai.BadRequestError, logprobs=True).param == "logprobs"
assert refused(openai.BadRequestError, extra_body={"guided_json": SCHEMA}).param == "guided_json"
long = [{"role": "user", "content": "word " * 60_000}]
assert refused(openai.BadRequestError, messages=long).code == "context_length_exceeded"
stream = CLIENT.chat.completions.create(model=MODEL, messages=TURNS, max_tokens=2000, stream=True)
next(iter(stream))
stream.close()


def health():
    return raw("/health", Authorization="")


assert health()[0] == 200, health()
for _ in range(600):
    if health()[1] == {"status": "ok", "under_way": 0}:
        break
    time.sleep(0.05)
else:
    raise SystemExit("a stream that was closed goes on")
print("health: the closed stream is cancelled")
asked = json.dumps({"model": MODEL, "messages": TURNS, "max_tokens": 1}).encode()
for path, expected, body, headers in [
    ("/v1/chat/completions", 200, asked, {"Content_Type": "application/json"}),
    ("/chat/completions", 200, asked, {"Content_Type": "application/json"}),
    ("/v1/chat/completions", 415, asked, {"Content_Type": "text/plain"}),
    ("/v1/chat/completions", 400, b"{", {"Content_Type": "application/json"}),
    ("/v1/nothing", 404, None, {}),
    ("/v1/models/nobody", 404, None, {}),
]:
    status, answer = raw(path, body, **headers)
    assert status == expected, (path, status, answer)
if "SERVE_KEY" in os.environ:
    assert raw("/v1/models", Authorization="Bearer wrong")[0] == 401
    assert raw("/v1/chat/completions", b"x" * (1 << 20), Authorization="")[0] == 401
elif any(name in ROOT for name in ["127.0.0.1", "localhost", "[::1]"]):
    assert raw("/v1/models", Host="evil.example")[0] == 403
print("status codes: as they should be")
print("all right")
