#!/usr/bin/env python3
"""Rows of tokens to train on, `{"input_ids": [...], "labels": [...]}` a line.

    python make_rows.py --full --rows 64 --length 256 --vocab 16384 --out rows.jsonl
    python make_rows.py --task sft.train.jsonl --join 2 --vocab 151936 --out rows.jsonl

`--full`: noisy repetitions of a short pattern, every row equally long, every token supervised.

`--task`: the project's own task. Its files hold `{"messages": [system, user, assistant]}`, as `because` writes them
(sft.*.jsonl), or `{"user_profile", "title", "item_profile", "explanation"}`. The prompt is masked, the answer and the token
that ends it are supervised; lengths are as ragged as the texts. Tokens come from a byte-level BPE trained on these texts, the
smallest that has 4.4 characters to a token, about what Qwen's own has on English. `--join N` makes one row of N
neighbouring ones (their user turns one after the other, and their answers), for texts shorter than real profiles; `--spread`
draws how many from 1 to 2N - 1, as histories differ. `--answer 50` cuts answers at 40 to 60 tokens. The lengths that come out
are printed: 300 to 350 tokens with about 50 supervised is what the profiles of people with a history have.
"""

import argparse
import json
import random
import statistics

IGNORED = -100
SYSTEM = ("You explain to a person why an item is recommended to them, in one short paragraph, from their profile and the "
          "item's profile alone.")


def full(rows, length, vocab, seed):
    draw = random.Random(seed)
    for _ in range(rows):
        pattern = [draw.randrange(vocab) for _ in range(draw.randint(3, 11))]
        ids = [pattern[at % len(pattern)] if draw.random() > 0.05 else draw.randrange(vocab) for at in range(length)]
        yield {"input_ids": ids, "labels": ids}


def chats(paths):
    """System, user and assistant turn of each record."""
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in filter(str.strip, file):
                record = json.loads(line)
                if "messages" in record:
                    turns = {turn["role"]: turn["content"] for turn in record["messages"]}
                    yield turns.get("system", SYSTEM), turns["user"], turns["assistant"]
                else:
                    user = (f"User profile: {record['user_profile']}\nItem: {record.get('title', '')}\n"
                            f"Item profile: {record['item_profile']}\nWhy is this item recommended?")
                    yield SYSTEM, user, record["explanation"]


def joined(chats, count, spread, draw):
    chats = list(chats)
    while chats:
        size = draw.randint(1, 2 * count - 1) if spread else count
        group, chats = chats[:size], chats[size:]
        if len(group) < size:
            return
        yield group[0][0], "\n\n".join(user for _, user, _ in group), " ".join(answer for _, _, answer in group)


def tokenizer(texts, most):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    size = 512
    while True:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        bpe.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=min(size, most), show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[AddedToken(name, special=True) for name in special]))
        tokens = sum(len(encoding.ids) for encoding in bpe.encode_batch(texts))
        rate = sum(map(len, texts)) / tokens
        if rate >= 4.4 or size >= most or bpe.get_vocab_size() < size:
            return bpe, rate
        size *= 2


def task(paths, join, spread, most, vocab, draw):
    turns = list(joined(chats(paths), join, spread, draw))
    if not turns:
        raise SystemExit(f"{', '.join(paths)}: fewer than {join} records")
    bpe, rate = tokenizer([text for turn in turns for text in turn], vocab)
    start, end = bpe.token_to_id("<|im_start|>"), bpe.token_to_id("<|im_end|>")
    encode = lambda text: bpe.encode(text).ids
    newline = encode("\n")
    rows = []
    for system, user, answer in turns:
        prompt = []
        for role, text in (("system", system), ("user", user)):
            prompt += [start] + encode(f"{role}\n{text}") + [end] + newline
        prompt += [start] + encode("assistant\n")
        answer = encode(answer)
        if most:
            answer = answer[:draw.randint(most * 4 // 5, most * 6 // 5) - 1]
        answer.append(end)
        rows.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})
    return rows, {"bpe": bpe.get_vocab_size(), "characters_per_token": round(rate, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--task", nargs="+", metavar="FILE")
    parser.add_argument("--rows", type=int, default=64, help="rows at most")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--join", type=int, default=1)
    parser.add_argument("--spread", action="store_true")
    parser.add_argument("--answer", type=int, default=0, help="supervised tokens of a row, about; all if 0")
    parser.add_argument("--vocab", type=int, required=True, help="that of the model; every token is below it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if args.full == bool(args.task):
        parser.error("one of --full and --task is asked for")
    about = {}
    if args.full:
        rows = list(full(args.rows, args.length, args.vocab, args.seed))
    else:
        draw = random.Random(args.seed)
        rows, about = task(args.task, args.join, args.spread, args.answer, args.vocab, draw)
        draw.shuffle(rows)
        rows = rows[:args.rows]
    with open(args.out, "w") as out:
        out.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    lengths = [len(row["input_ids"]) for row in rows]
    supervised = [sum(label != IGNORED for label in row["labels"]) for row in rows]
    print(json.dumps({"rows": len(rows), "mean_length": round(statistics.mean(lengths), 1),
                      "deviation": round(statistics.pstdev(lengths), 1), "min": min(lengths), "max": max(lengths),
                      "mean_supervised": round(statistics.mean(supervised), 1), **about}))


if __name__ == "__main__":
    main()
