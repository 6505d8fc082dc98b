"""Samples per second that one core reads, decodes and augments, for each modality.

A second is one of processor time, so that a busy machine does not matter. Beside it: members of a
shard found by place against webdataset's own reading from front to back, of the same bytes, and
what worker processes add. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from clock import machine
from sizes import TINY_MODALITIES

from onellm.data.loader import Loader
from onellm.data.order import Order, Part
from onellm.data.packaged import starter_folder
from onellm.data.sample import Sample
from onellm.data.shards import read_folder
from onellm.data.signal_reader import SignalReader
from onellm.data.tars import Shard
from onellm.modality import Modality
from onellm.preset import load_preset
from onellm.registry import get_modality, modality_classes

EXAMPLES = """examples:
  python benchmarks/dataload.py --size tiny --seconds 0.1
  python benchmarks/dataload.py --size published --workers 1 4 8
  python benchmarks/dataload.py --folder shards --modalities image video
"""
ROUNDS = 5
SIZES = ("tiny", "quickstart", "published")


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)  # what one core does
    folder = Path(options.folder) if options.folder else starter_folder()
    modalities = modalities_of(options.size)
    # Each is read from its shard beforehand: decoding is measured here, shards below.
    read = read_folder(folder, "train", modalities, options.modalities)
    samples = {name: list(found) for name, found in read.items()}
    rows = []
    for name, found in samples.items():
        rows.append(measure(modalities[name], found, options.seconds))
        print(rows[-1])
    shards = [raw(folder / f"{name}-train.tar", options.seconds) for name in samples]
    for row in shards:
        print(row)
    scaling = [
        throughput(modalities, samples, workers, options.seconds) for workers in options.workers
    ]
    for row in scaling:
        print(row)
    described = {"benchmark": "dataload", "size": options.size, **machine(torch.device("cpu"))}
    print(json.dumps({**described, "rows": rows, "shards": shards, "workers": scaling}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, default="published", help="of the signals")
    parser.add_argument("--folder", help="of <modality>-train.tar; the packaged data")
    parser.add_argument("--modalities", nargs="+", help="all if left out")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="to compare")
    # The suite runs every benchmark with it.
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="data are read there")
    return parser.parse_args()


def modalities_of(size: str) -> dict[str, Modality]:
    """All modalities with the signals of a size."""
    options: dict[str, dict[str, Any]] = {name: {} for name in modality_classes()}
    if size == "tiny":
        options = TINY_MODALITIES
    elif size == "quickstart":
        options = dict(load_preset("small").model.modalities)
    return {name: get_modality(name, **own) for name, own in options.items()}


def rate(calls: Iterator[Callable[[], Any]], seconds: float) -> float:
    """Calls per second of processor time."""
    next(calls)()
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        next(calls)()
        count += 1
    return round(count / spent, 2)


def rates(runs: Mapping[str, Iterator[Callable[[], Any]]], seconds: float) -> dict[str, float]:
    """Median rates of several ways to do a thing, in turns, so that a stall is no verdict."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, calls in runs.items():
            found[name].append(rate(calls, seconds / ROUNDS))
    return {name: statistics.median(each) for name, each in found.items()}


def measure(modality: Modality, samples: list[Sample], seconds: float) -> dict[str, Any]:
    """Reading with decoding, and augmenting, of one modality."""
    signal = modality.load(samples[0].media[0][1])
    generator = torch.Generator().manual_seed(0)
    load = (partial(modality.load, s.media[0][1]) for s in itertools.cycle(samples))
    augment = itertools.repeat(partial(modality.augment, signal, generator))
    loaded, augmented = rate(load, seconds), rate(augment, seconds)
    both = round(1 / (1 / loaded + 1 / augmented), 1)
    row = {"modality": modality.name, "shape": list(signal.shape), "loaded_per_s": loaded}
    return {**row, "augmented_per_s": augmented, "samples_per_s_per_core": both}


def raw(path: Path, seconds: float) -> dict[str, Any]:
    """Samples of a shard as bytes: ours by place, webdataset's in order; per second."""
    import webdataset

    def theirs() -> dict[str, dict[str, bytes]]:
        stream = webdataset.WebDataset([str(path)], shardshuffle=False, nodesplitter=None)
        return {r["__key__"]: {k: v for k, v in r.items() if k[0] != "_"} for r in stream}

    def ours() -> dict[str, dict[str, bytes]]:
        shard = Shard(path)
        return dict(shard.read(i) for i in range(len(shard.entries)))

    if ours() != theirs():
        raise SystemExit(f"{path}: the readers differ")
    count, shard = len(theirs()), Shard(path)
    by_place = itertools.cycle([partial(shard.read, (7919 * i) % count) for i in range(count)])
    whole = rates({"ours": itertools.repeat(ours), "theirs": itertools.repeat(theirs)}, seconds)
    return {
        "shard": path.name,
        "samples": count,
        "at_any_place_per_s": rate(by_place, seconds),
        "opened_and_read_per_s": round(count * whole["ours"], 1),
        "webdataset_per_s": round(count * whole["theirs"], 1),
        "ratio": round(whole["ours"] / whole["theirs"], 2),
    }


def throughput(
    modalities: dict[str, Modality], samples: dict[str, list[Sample]], workers: int, seconds: float
) -> dict[str, Any]:
    """Samples per second of wall time through the loader, all modalities mixed."""
    parts = [Part(name, name, len(found)) for name, found in samples.items()]
    loader = Loader(
        list(samples.values()),
        Order(parts, seed=0, batch=16),
        lambda turns: (torch.tensor([1, 2]), torch.tensor([-100, 2])),
        SignalReader(modalities),
        augment=True,
    )
    steps = loader.steps(0, 10**6, rank=0, world=1, per_device=8, ahead=1, workers=workers)
    next(steps)  # processes have started
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < max(seconds, 0.2):
        count += sum(map(len, next(steps)))
    spent = time.perf_counter() - began
    steps.close()
    return {"workers": workers, "samples_per_s": round(count / spent, 1)}


if __name__ == "__main__":
    main()
