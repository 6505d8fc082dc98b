"""``kill -9`` in the middle, and SIGTERM, which saves and leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_model
from tiny_runs import tiny_config, tiny_run, write_shards

from onellm.train import loop
from onellm.train.checkpoint import Checkpoints
from onellm.train.launch import run_training
from onellm.train.metrics import read_metrics
from onellm.train.signals import Stopped

ROOT = Path(__file__).parents[1]


def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    """In a process of its own: a fork of this one would inherit its threads."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kill_and_resume.py"), "--kills", "4"],
        **{"capture_output": True, "text": True, "check": False},
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["identical"]
    assert report["kills"] == 4
    assert any(report["steps_seen"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_leaves(tmp_path, monkeypatch, name):
    shards = write_shards(tmp_path / "shards")
    sections = {"checkpoint": {"every": 0, "keep": 2}}
    whole, records = tiny_run(shards, tmp_path / "whole", **sections)
    before = signal.getsignal(getattr(signal, name))
    report = loop._report

    def ask(run: object, step: int, record: object) -> None:
        report(run, step, record)
        if step == 1:
            os.kill(os.getpid(), getattr(signal, name))

    model = tiny_model("image", "imu")
    classes = [type(module) for module in model.modules()]
    attention = model.llm.config._attn_implementation
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_report", ask)
        with pytest.raises(Stopped, match="stopped by a signal after step 3 of 6, which is saved"):
            run_training(tiny_config(shards, tmp_path / "cut", **sections), model=model)
    assert [type(module) for module in model.modules()] == classes  # as any other again
    assert model.llm.config._attn_implementation == attention
    assert signal.getsignal(getattr(signal, name)) == before
    assert Checkpoints(tmp_path / "cut", keep=2).newest().step == 3
    resumed, again = tiny_run(shards, tmp_path / "cut", **sections)
    assert [r["loss"] for r in again] == [r["loss"] for r in records]
    one, other = whole.state_dict(), resumed.state_dict()
    assert all(one[n].equal(other[n]) for n in one)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_command_leaves_with_the_code_of_a_terminated_process(workers, tmp_path):
    """Schedulers signal whole groups of processes, those that read media among them."""
    shards = write_shards(tmp_path / "shards")
    tiny_model("image", "imu").save_pretrained(tmp_path / "start")
    config = tiny_config(shards, tmp_path / "out", length={"steps": 100_000}).model_dump(
        mode="json"
    )
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config | {"model": str(tmp_path / "start")}))
    overrides = ["checkpoint.every=0", f"data.workers={workers}"]
    running = subprocess.Popen(
        [sys.executable, "-m", "onellm.train.launch", str(file), *overrides],
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT},
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        metrics, end = tmp_path / "out" / "metrics.jsonl", time.monotonic() + 240
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
            time.sleep(0.05)
        assert metrics.exists(), "it has not begun"
        os.killpg(running.pid, signal.SIGTERM)
        said = running.communicate(timeout=60)[1]
    finally:
        running.kill()
    assert running.returncode == 143, said
    assert "the same command goes on from there" in said
    steps = len(read_metrics(metrics))
    assert Checkpoints(tmp_path / "out", keep=2).newest().step == steps
