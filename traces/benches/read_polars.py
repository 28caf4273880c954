"""Reads the files of `cargo bench -p moeplan-traces --bench read` with polars, on one thread.

    pip install polars==1.* numpy
    cargo bench -p moeplan-traces --bench read
    POLARS_MAX_THREADS=1 python3 traces/benches/read_polars.py

What is timed is the same work: every value read, and the copies of every step summed. Time is that
of the processor.
"""

import os
import time

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np
import polars as pl

FOLDER = os.environ.get("MOEPLAN_BENCH", "target/tmp/traces-read")
UNPACKED = 160 * 8 * 64 * 128 * 4


def counts_csv(path):
    frame = pl.read_csv(path, comment_prefix="#")
    experts = [name for name in frame.columns if name.startswith("e")]
    return frame.select(pl.sum_horizontal(experts)).sum().item()


def counts_parquet(path):
    frame = pl.read_parquet(path)
    return frame.select(pl.col("counts").arr.sum()).sum().item()


def counts_npy(path):
    return int(np.load(path).astype(np.int64).sum())


def tokens_csv(path):
    frame = pl.read_csv(path)
    layers = [name for name in frame.columns if name.startswith("L")]
    total = 0
    for layer in layers:
        ids = frame[layer].str.split(" ").list.eval(pl.element().cast(pl.Int32)).explode()
        total += int(ids.value_counts()["count"].sum())
    return total


for name, read in [
    ("counts-i4.npy", counts_npy),
    ("counts-i8.npy", counts_npy),
    ("counts.parquet", counts_parquet),
    ("counts.csv", counts_csv),
    ("tokens.csv", tokens_csv),
]:
    path = os.path.join(FOLDER, name)
    size = UNPACKED if name.endswith(".parquet") else os.path.getsize(path)
    times = []
    for _ in range(5):
        start = time.process_time()
        read(path)
        times.append(time.process_time() - start)
    best = min(times)
    print(f"{name:16} {size / best / 1e6:8.0f} MB/s")
