"""``kill -9`` at random moments, also while saving: resuming ends in the same weights, bit for bit.

    python tests/kill_and_resume.py --kills 20

A short form is in the suite (``tests/test_train_kill.py``). The training runs in children that are
forked from one process, which has run it once, so a life costs a fraction of a second. A checkpoint
is written after every step, and flushing to disk is slowed down, so that about half of the kills
fall into saving. A life is ended at a random moment behind its zeroth, first or second checkpoint,
so that however slow the machine is some lives get nowhere, and others on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny import tiny_model
from tiny_runs import tiny_config, write_shards

from onellm.train import checkpoint as saving
from onellm.train.launch import run_training
from onellm.train.metrics import read_metrics

STEPS = 12
SLOW_S = 0.02
"""Added to every flush to disk: a checkpoint has some six."""


@dataclass
class Report:
    """What came of it.

    Args:
        kills: lives that were ended.
        while_saving: of them, those that left a half-written checkpoint.
        steps_seen: newest checkpoint after each kill.
        identical: whether weights and losses are those of the run that nobody disturbed.
    """

    kills: int = 0
    while_saving: int = 0
    steps_seen: list[int] = field(default_factory=list)
    identical: bool = False


def run(shards: Path, out: Path) -> None:
    """The whole training, from the newest checkpoint on."""
    config = tiny_config(
        shards,
        out,
        length={"steps": STEPS},
        checkpoint={"every": 1, "keep": 2, "keep_every": 5},
    )
    run_training(config, model=tiny_model("image", "imu"))


def child(shards: Path, out: Path) -> int:
    """Fork a process that trains; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)  # thread pools do not survive a fork
        flush = saving._sync

        def slow(path: Path) -> None:
            time.sleep(SLOW_S)
            flush(path)

        saving._sync = slow
        run(shards, out)
        code = 0
    finally:
        os._exit(code)


def wait_for(pid: int, seconds: float) -> int | None:
    """Exit status of a child, or None if it is still alive after that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    return None


def newest_step(out: Path) -> int:
    """Of the checkpoints that are complete, by their names; 0 for none."""
    names = (path.name for path in (out / "checkpoints").glob("step-*"))
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def wait_for_step(pid: int, out: Path, step: int) -> int | None:
    """Wait until a child has saved a step; its exit status if it ends before."""
    while newest_step(out) < step:
        status = wait_for(pid, 0.002)
        if status is not None:
            return status
    return None


def kill_and_resume(folder: Path, kills: int, seed: int = 0) -> Report:
    """Kill a run again and again until it has been killed so often, then let it end.

    Args:
        folder: for data and runs.
        kills: how many.
        seed: of the moments.
    """
    torch.set_num_threads(1)
    shards = write_shards(folder / "shards")
    run(shards, folder / "warm")
    pid, whole = child(shards, folder / "whole"), folder / "whole"
    began = time.monotonic()
    status = wait_for_step(pid, whole, 1)
    first_s, began = time.monotonic() - began, time.monotonic()
    if status is not None or wait_for_step(pid, whole, STEPS) is not None:
        raise SystemExit("the undisturbed run failed")
    step_s = (time.monotonic() - began) / (STEPS - 1)
    if wait_for(pid, 300) != 0:
        raise SystemExit("the undisturbed run failed")
    rng, report, out = random.Random(seed), Report(), folder / "cut"
    while report.kills < kills:
        before, ahead = newest_step(out), rng.randint(0, 2)
        pid = child(shards, out)
        status = wait_for_step(pid, out, before + ahead)
        if status is None:
            status = wait_for(pid, rng.uniform(0, 1.5 * step_s if ahead else 1.5 * first_s))
        if status is not None:
            if status:
                raise SystemExit(f"a resumed run failed: status {status}")
            for done in (out / "checkpoints").glob("step-*"):  # it has ended: begin anew
                done.rename(out / f"done-{report.kills}-{done.name}")
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        report.kills += 1
        checkpoints = saving.Checkpoints(out, keep=2)
        report.while_saving += any(checkpoints.folder.glob(".step-*"))
        newest = checkpoints.newest()
        report.steps_seen.append(newest.step if newest else 0)
    if wait_for(child(shards, out), 300) != 0:
        raise SystemExit("the last life failed")
    report.identical = same(whole, out)
    return report


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended in the same numbers: weights, optimiser state, losses."""
    states = []
    for out in (one, other):
        checkpoints = saving.Checkpoints(out, keep=2)
        states.append(checkpoints.load(checkpoints.at(STEPS)))
    a, b = states
    tensors = a.shapes == b.shapes and all(torch.equal(a.whole(n), b.whole(n)) for n in a.shapes)
    losses = [[r["loss"] for r in read_metrics(out / "metrics.jsonl")] for out in (one, other)]
    return tensors and losses[0] == losses[1] and len(losses[0]) == STEPS


def main() -> int:
    """Run it and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_and_resume(Path(folder), options.kills, options.seed)
    print(json.dumps(vars(report)))
    told = any(report.steps_seen)  # kills before the first checkpoint alone would prove nothing
    return 0 if report.identical and told else 1


if __name__ == "__main__":
    sys.exit(main())
