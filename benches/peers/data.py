"""What `because import` does, with pandas: reads raw interactions, keeps the latest of each user and item, leaves out low
ratings and what is outside the 5-core, splits 8:1:1 and writes JSON Lines. One measurement, in a process of its own.

    python data.py read|import FILE OUT

Prints {"rows", "seconds", "peak_rss_bytes"} as JSON. Needs pandas (and numpy); makes nothing else.
"""

import json
import resource
import sys
import time

import numpy
import pandas

LEAST = 3
CORE = 5


def read(path):
    if path.endswith(".csv"):
        return pandas.read_csv(path, dtype={"user_id": str, "item_id": str})
    # In one piece it takes twice the memory and is no faster.
    dtypes = {"user_id": str, "item_id": str}
    chunks = pandas.read_json(path, lines=True, dtype=dtypes, convert_dates=False, chunksize=500_000)
    return pandas.concat(chunks, ignore_index=True)


def core(rows):
    while True:
        before = len(rows)
        for column in ("user_id", "item_id"):
            rows = rows[rows.groupby(column)[column].transform("size") >= CORE]
        if len(rows) == before:
            return rows


def main(what, path, out):
    begun = time.perf_counter()
    rows = read(path)
    count = len(rows)
    if what == "import":
        rows["place"] = numpy.arange(count)
        rows = rows.sort_values("timestamp", kind="stable")
        rows = rows.drop_duplicates(["user_id", "item_id"], keep="last").sort_values("place")
        rows = core(rows[rows["rating"] >= LEAST])
        order = numpy.random.default_rng(0).permutation(len(rows))
        rows["split"] = numpy.select([order < len(rows) * 0.8, order < len(rows) * 0.9], ["train", "valid"], "test")
        rows = rows.rename(columns={"user_id": "user", "item_id": "item", "text": "review"}).drop(columns="place")
        rows.to_json(out, orient="records", lines=True, force_ascii=False)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"rows": count, "taken": len(rows), "seconds": seconds, "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
