"""Checkpoints: whole or not there, verified, the newest kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from tiny_runs import tiny_config

from onellm.errors import CheckpointError
from onellm.train import checkpoint as module
from onellm.train.checkpoint import Checkpoints, check_same_run
from onellm.train.engine import PlainEngine
from onellm.train.objectives import LanguageModelling
from onellm.train.state import TrainState
from onellm.train.trainables import select

CONFIG = tiny_config(Path("shards"), Path("out"))


def state(step: int) -> TrainState:
    return TrainState({"parameter/x": torch.full((3,), float(step))}, step)


def test_save_and_load(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    folder = checkpoints.save(state(7), CONFIG)
    assert folder.name == "step-000007"
    newest = checkpoints.newest()
    assert (newest.step, newest.stage) == (7, "test")
    assert torch.equal(checkpoints.load(newest).whole("parameter/x"), torch.full((3,), 7.0))
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-000007"
    assert json.loads((folder / "state.json").read_text())["samples"] == 7 * 8


def test_the_newest_by_recorded_step_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_998, 999_999, 1_000_000, 1_000_001):  # names no longer sort
        checkpoints.save(state(step), CONFIG)
    kept = {p.name for p in (tmp_path / "checkpoints").glob("step-*")}
    assert kept == {"step-1000000", "step-1000001"}
    assert checkpoints.newest().step == 1_000_001


@pytest.mark.parametrize("moment", ["save_file", "fsync", "rename"])
def test_a_crash_while_saving_leaves_the_last_good_one(tmp_path, monkeypatch, moment):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), CONFIG)

    def crash(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "save_file":
            patch.setattr("safetensors.torch.save_file", crash)
        elif moment == "fsync":
            patch.setattr(module, "_sync", crash)
        else:
            patch.setattr(Path, "rename", crash)
        with pytest.raises(CheckpointError, match="no space left"):
            checkpoints.save(state(2), CONFIG)
    assert checkpoints.load(checkpoints.newest()).step == 1
    checkpoints.save(state(2), CONFIG)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-000002", "latest"}


def test_every_nth_is_kept_for_good(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(2, 14):
        checkpoints.save(state(step), CONFIG)
    kept = {int(p.name[5:]) for p in (tmp_path / "checkpoints").glob("step-*")}
    assert kept == {4, 8, 12, 13}
    assert checkpoints.at(8).step == 8
    with pytest.raises(CheckpointError, match="no checkpoint of step 9; there: 4, 8, 12, 13"):
        checkpoints.at(9)


def in_order(*shares: TrainState) -> Any:
    """What three processes that save together hear from each other, told one after the other."""
    barrier, lock = threading.Barrier(len(shares)), threading.Lock()
    told: dict[int, Any] = {}

    def share(rank: int) -> Any:
        def tell(value: Any) -> list[Any]:
            with lock:
                told[rank] = value
            barrier.wait(10)
            heard = [told[r] for r in range(len(shares))]
            barrier.wait(10)
            return heard

        return tell

    return share


def save_together(checkpoints: Checkpoints, *shares: TrainState) -> list[Exception]:
    """Save from several threads, one for each process's share; what they raised."""
    share, raised = in_order(*shares), []

    def work(rank: int) -> None:
        try:
            checkpoints.save(shares[rank], CONFIG, rank, share(rank))
        except CheckpointError as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return raised


def slices_of(values: torch.Tensor, cuts: list[int]) -> list[TrainState]:
    """One tensor cut into the shares of processes."""
    shares = []
    for first, last in zip([0, *cuts], [*cuts, values.numel()], strict=True):
        own = TrainState({}, 5, facts={"updates": 4})
        own.put_slice("parameter/x", values.flatten()[first:last], first, values.shape)
        shares.append(own)
    return shares


def test_shares_of_several_processes_are_one_state(tmp_path):
    values = torch.randn(4, 6)
    checkpoints = Checkpoints(tmp_path, keep=1)
    shares = slices_of(values, [7, 7, 20])  # the second owns nothing of it
    shares[0].tensors["buffer/head"] = torch.arange(3.0)
    assert save_together(checkpoints, *shares) == []
    saved = checkpoints.load(checkpoints.newest())
    assert torch.equal(saved.whole("parameter/x"), values)
    assert torch.equal(saved.read("parameter/x", 5, 10), values.flatten()[5:15])
    assert torch.equal(saved.whole("buffer/head"), torch.arange(3.0))
    assert saved.shapes == {"parameter/x": (4, 6), "buffer/head": (3,)}
    assert saved.facts["updates"] == 4
    files = {p.name for p in checkpoints.newest().folder.glob("*.safetensors")}
    assert files == {f"state-0000{r}.safetensors" for r in (0, 2, 3)}


def test_one_process_that_cannot_write_stops_all(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), CONFIG)
    write = module._write_tensors

    def full(folder: Path, own: TrainState, rank: int) -> Any:
        if rank == 1:
            raise OSError(28, "No space left on device")
        return write(folder, own, rank)

    monkeypatch.setattr(module, "_write_tensors", full)
    raised = save_together(checkpoints, *slices_of(torch.ones(9), [3, 6]))
    assert len(raised) == 3
    assert all("process 1: no space left" in str(error) for error in raised)
    assert checkpoints.load(checkpoints.newest()).step == 1


def test_a_missing_share_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save_together(checkpoints, *slices_of(torch.ones(9), [3]))
    facts = checkpoints.newest().folder / "state.json"
    told = json.loads(facts.read_text())
    del told["files"]["state-00000.safetensors"]
    facts.write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="numbers 0 to 9 are in no file"):
        checkpoints.load(checkpoints.newest()).whole("parameter/x")


def test_a_read_only_folder_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), CONFIG)
    checkpoints.folder.chmod(0o500)
    root = os.geteuid() == 0  # who may write anywhere: be somebody else for a moment
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(
            CheckpointError, match=r"step-000002: cannot be written.*permission denied"
        ):
            checkpoints.save(state(2), CONFIG)
    finally:
        if root:
            os.seteuid(0)
        checkpoints.folder.chmod(0o700)
    assert checkpoints.newest().step == 1


def test_a_real_full_disk(tmp_path):
    """A file-size limit stands in for the disk: the kernel refuses the write in the middle."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "import torch; from pathlib import Path\n"
        "from onellm.train.checkpoint import Checkpoints\n"
        "from onellm.train.state import TrainState\n"
        "from onellm.errors import CheckpointError\n"
        "from tiny_runs import tiny_config\n"
        "config = tiny_config(Path('shards'), Path('out'))\n"
        "kept = Checkpoints(sys.argv[1], keep=1)\n"
        "kept.save(TrainState({'parameter/x': torch.ones(3)}, 1), config)\n"
        "try:\n"
        "    kept.save(TrainState({'parameter/x': torch.ones(10**6)}, 2), config)\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
        "print('newest', kept.load(kept.newest()).step)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        **{"capture_output": True, "text": True, "cwd": root, "check": False},
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
    )
    assert "step-000002: cannot be written" in done.stdout, done.stderr
    assert done.stdout.strip().endswith("newest 1")


def test_leftovers_of_crashes_are_cleared(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(1), CONFIG)
    for name in (".step-000002.tmp", ".step-000000.old", "step-000002"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "state-00000.safetensors").write_bytes(b"half")
    assert checkpoints.newest().step == 1
    checkpoints.save(state(2), CONFIG)
    left = {p.name for p in checkpoints.folder.iterdir()}
    assert left == {"step-000001", "step-000002", "latest"}
    assert checkpoints.load(checkpoints.newest()).step == 2


def test_a_step_that_is_safe_is_not_written_again(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    folder = checkpoints.save(state(1), CONFIG)
    before = (folder / "state.json").stat().st_mtime_ns
    assert checkpoints.save(state(1), CONFIG) == folder
    assert (folder / "state.json").stat().st_mtime_ns == before


def test_a_checkpoint_of_format_1_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    folder = checkpoints.save(state(3), CONFIG)
    old = folder / "state.safetensors"
    (folder / "state-00000.safetensors").rename(old)
    told = json.loads((folder / "state.json").read_text())
    told["files"] = {old.name: told["files"]["state-00000.safetensors"]}
    told["format_version"] = 1
    for key in ("facts", "shapes", "processes"):
        del told[key]
    for key in ("compute", "log"):
        del told["config"][key]
    (folder / "state.json").write_text(json.dumps(told))
    newest = checkpoints.newest()
    assert torch.equal(checkpoints.load(newest).whole("parameter/x"), torch.full((3,), 3.0))
    check_same_run(newest, CONFIG)


def test_damage_names_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(state(1), CONFIG)
    (checkpoints.save(state(2), CONFIG) / "state-00000.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="Remove the folder to go on from step 1"):
        checkpoints.load(checkpoints.newest())


def test_damage_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    file = checkpoints.save(state(1), CONFIG) / "state-00000.safetensors"
    whole, newest = file.read_bytes(), checkpoints.newest()
    for data, message in (
        (whole[:-4], "bytes; found"),
        (whole[:-4] + b"ABCD", "checksum"),
    ):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=message) as error:
            checkpoints.load(newest)
        assert "state-00000.safetensors" in str(error.value)
    file.unlink()
    with pytest.raises(CheckpointError, match="found none"):
        checkpoints.load(newest)
    (file.parent / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoints.newest()


def test_a_newer_format_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    file = checkpoints.save(state(1), CONFIG) / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        checkpoints.newest()


def test_what_may_change_between_a_run_and_its_continuation(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(state(1), CONFIG)
    newest = checkpoints.newest()
    check_same_run(newest, CONFIG)
    elsewhere = tiny_config(
        Path("shards"),
        Path("elsewhere"),
        length={"steps": 99},
        deepspeed={"zero": 2},
        batch={"per_device": 2},
        data={"faults": {"policy": "skip", "share": 0.1}},
    )
    check_same_run(newest, elsewhere)
    with pytest.raises(CheckpointError, match=r"optim\.lr \(0\.002 then, 0\.5 now\)"):
        check_same_run(newest, tiny_config(Path("shards"), Path("out"), optim={"lr": 0.5}))


def test_a_state_of_other_parameters_is_refused():
    model = tiny_model("imu")
    select(model, ["tags.*"], ["imu"])
    engine = PlainEngine(LanguageModelling(model), CONFIG, torch.device("cpu"))
    with pytest.raises(
        CheckpointError, match=r"missing .*tags\.start\.imu.*unexpected parameter/x"
    ):
        engine.load(state(1))
    tensors = {
        f"{kind}/tags.{side}.imu": torch.zeros(5)
        for kind in ("parameter", "exp_avg", "exp_avg_sq")
        for side in ("start", "end")
    }
    with pytest.raises(CheckpointError, match=r"expected \(32,\), found \(5,\)"):
        engine.load(TrainState(tensors, 1))
