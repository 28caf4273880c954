#!/usr/bin/env python3
"""Recomputes the statistics of a trace with numpy, and scipy where it is installed.

    moeplan trace stats TRACE.csv --per-step --format json > stats.json
    python3 tests/check_trace_stats.py TRACE.csv stats.json

Shares no code with moeplan: formulas are written from the definitions in docs and standard texts.
Prints how many numbers agree; exits 1 at the first that does not.
"""

import json
import sys

import numpy as np

try:
    from scipy import stats as scipy_stats
    from scipy.spatial import distance as scipy_distance
except ImportError:
    scipy_stats = scipy_distance = None

CHECKED = 0


def same(what, found, expected, tolerance=1e-9):
    global CHECKED
    CHECKED += 1
    if found is None or expected is None:
        agree = found is None and expected is None
    else:
        agree = abs(found - expected) <= tolerance * max(1.0, abs(expected))
    if not agree:
        sys.exit(f"{what}: moeplan says {found}, numpy {expected}")


def read(path):
    """Counts by (layer, step): arrays of [ranks, experts]."""
    rows = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("#") or line.startswith("step"):
                continue
            step, layer, _, *counts = line.split(",")
            rows.setdefault((int(layer), int(step)), []).append([int(c) for c in counts])
    return {key: np.array(value, dtype=np.int64) for key, value in rows.items()}


def gini(loads):
    """Mean absolute difference over twice the mean."""
    apart = np.abs(loads[:, None] - loads[None, :]).mean()
    return apart / (2 * loads.mean())


def entropy_bits(loads):
    if scipy_stats is not None:
        return float(scipy_stats.entropy(loads, base=2))
    p = loads[loads > 0] / loads.sum()
    return float(-(p * np.log2(p)).sum())


def variation(p, q):
    return 0.5 * np.abs(p - q).sum()


def check_step(name, found, counts):
    loads = counts.sum(axis=0).astype(float)
    experts = loads.size
    per_rank = counts.sum(axis=1)
    used = per_rank > 0
    same(f"{name} copies", found["copies"], int(counts.sum()))
    needed = (counts[used].max(axis=1) * experts / per_rank[used]).max()
    same(f"{name} needed f", found["needed_capacity_factor"], needed)
    same(f"{name} max/mean", found["max_over_mean"], loads.max() / loads.mean())
    cv = loads.std() / loads.mean()
    if scipy_stats is not None:
        cv = float(scipy_stats.variation(loads))
    same(f"{name} cv", found["coefficient_of_variation"], cv)
    same(f"{name} gini", found["gini"], gini(loads))
    same(f"{name} entropy", found["entropy_bits"], entropy_bits(loads))
    ordered = np.sort(loads)[::-1]
    same(f"{name} top 1", found["top_share"], ordered[0] / loads.sum())
    tenth = -(-experts // 10)
    same(f"{name} top tenth", found["top_tenth_share"], ordered[:tenth].sum() / loads.sum())
    share = loads / loads.sum()
    apart = [variation(row / row.sum(), share) * row.sum() for row in counts[used]]
    same(f"{name} ranks apart", found["source_divergence"], sum(apart) / loads.sum())
    for factor, dropped in found["dropped"].items():
        capacity = np.ceil(float(factor) * per_rank / experts - 1e-9)
        over = np.maximum(counts - capacity[:, None], 0).sum()
        same(f"{name} dropped at {factor}", dropped, over / loads.sum())
    return share


def check_layer(name, found, shares, steps):
    mean = shares.mean(axis=0)
    for expert, share in enumerate(found["mean_shares"]):
        same(f"{name} share of {expert}", share, mean[expert])
    for key in ("needed_capacity_factor", "gini", "entropy_bits", "source_divergence"):
        values = np.array([step[key] for step in steps])
        for part, value in (
            ("first", values[0]),
            ("min", values.min()),
            ("mean", values.mean()),
            ("max", values.max()),
            ("last", values[-1]),
        ):
            same(f"{name} {key} {part}", found[key][part], value)
    centred = shares - mean
    whole = (centred**2).sum()
    for lag, value in found["autocorrelation"].items():
        lag = int(lag)
        if lag >= len(shares) or whole <= 1e-24:
            same(f"{name} lag {lag}", value, None)
        else:
            product = (centred[:-lag] * centred[lag:]).sum() / whole
            same(f"{name} lag {lag}", value, product)
    if len(shares) > 1:
        count = range(1, len(shares))
        last = np.mean([variation(shares[i], shares[i - 1]) for i in count])
        average = np.mean([variation(shares[i], shares[max(0, i - 8) : i].mean(axis=0)) for i in count])
        fixed = np.mean([variation(shares[i], mean) for i in count])
        same(f"{name} last value", found["forecast"]["last_value"], last)
        same(f"{name} moving average", found["forecast"]["moving_average"], average)
        same(f"{name} mean forecast", found["forecast"]["mean"], fixed)
    # Change points: the distance of each, from the stretches that they part. Where they are is
    # checked by what a change point is: no split of any stretch saves more than the penalty.
    numbers = [step["step"] for step in steps]
    cuts = [numbers.index(change["step"]) for change in found["change_points"]]
    ends = [0, *cuts, len(shares)]
    noise = (np.diff(shares, axis=0) ** 2).sum() / (2 * max(len(shares) - 1, 1))
    penalty = 3 * np.log(len(shares)) * noise
    for i, change in enumerate(found["change_points"]):
        before = shares[ends[i] : ends[i + 1]].mean(axis=0)
        after = shares[ends[i + 1] : ends[i + 2]].mean(axis=0)
        same(f"{name} change at {change['step']}", change["distance"], variation(before, after))
    for start, end in zip(ends, ends[1:]):
        cost = lambda part: ((part - part.mean(axis=0)) ** 2).sum()
        stretch = shares[start:end]
        for cut in range(4, len(stretch) - 3):
            saved = cost(stretch) - cost(stretch[:cut]) - cost(stretch[cut:])
            if len(shares) >= 8 and saved > penalty * (1 + 1e-9) + 1e-12:
                sys.exit(f"{name}: a change at {numbers[start + cut]} was missed")


def check_coupling(name, found, before, after):
    """The RV coefficient, by its definition on covariances."""
    x, y = (part - part.mean(axis=0) for part in (before, after))
    if len(x) > 256:
        return
    sxy, sxx, syy = x.T @ y, x.T @ x, y.T @ y
    scale = np.sqrt((sxx**2).sum() * (syy**2).sum())
    expected = (sxy**2).sum() / scale if scale > 1e-40 else None
    same(name, found, expected)


def main():
    counts = read(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as file:
        document = json.load(file)
    steps = {}
    for step in document["per_step"]:
        key = (step["layer"], step["step"])
        share = check_step(f"layer {key[0]} step {key[1]}", step, counts[key])
        steps.setdefault(key[0], []).append((step, share))
    if sum(map(len, steps.values())) != len(counts):
        sys.exit(f"{len(counts)} steps in the file, {sum(map(len, steps.values()))} in the statistics")
    before = None
    for layer in document["layers"]:
        own = steps[layer["layer"]]
        shares = np.array([share for _, share in own])
        name = f"layer {layer['layer']}"
        check_layer(name, layer, shares, [step for step, _ in own])
        if before is not None and len(shares) > 1 and len(before) == len(shares):
            check_coupling(f"{name} coupling", layer["coupling_to_previous"], before, shares)
        before = shares
    if scipy_distance is not None:
        # The distances of `trace diff` are checked in Rust; here that scipy means the same by them.
        js = scipy_distance.jensenshannon([0.5, 0.5], [1.0, 0.0], base=2) ** 2
        same("Jensen-Shannon of a closed form", 0.75 * np.log2(4 / 3) + 0.5 - 0.5, js)
    print(f"{CHECKED} numbers agree{'' if scipy_stats else ' (scipy is missing: numpy only)'}")


if __name__ == "__main__":
    main()
