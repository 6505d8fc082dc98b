"""Each benchmark runs at its smallest size and closes with a line of JSON that says all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *words],
        **{"capture_output": True, "text": True, "cwd": ROOT, "check": False},
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def result_of(name: str, *words: str) -> dict[str, Any]:
    return json.loads(run(name, "--size", "tiny", "--device", "cpu", *words).splitlines()[-1])


@pytest.mark.parametrize("name", ["dataload", "decode", "encode", "eval_runner"])
def test_help_has_examples(name):
    assert f"python benchmarks/{name}.py --size tiny" in run(name, "--help")


def test_decode():
    small = ("--rounds", "1", "--new-tokens", "6", "--prompt-tokens", "8", "--megabytes", "1")
    result = result_of("decode", "--batches", "1", "3", *small)
    assert [row["batch"] for row in result["batches"]] == [1, 3]
    for row in result["batches"]:
        assert row["same_tokens_as_generate"] == row["same_tokens_as_batch_1"] == 1
        assert row["ratio"]["generate"] > 0 and row["mbu"] > 0
    assert len(result["first_token_s"]) == 8 and min(result["first_token_s"].values()) > 0


def test_encode_has_the_published_loop_agree():
    result = result_of("encode", "--batches", "2", "--rounds", "1")
    assert len(result["rows"]) == 8
    for row in result["rows"]:
        assert row["upm_ratio"] > 0 and 0 <= row["largest_difference"] < 1e-4


def test_train_step():
    """Both sides reach the same loss, or the benchmark ends with an error."""
    result = result_of("train_step", "--modalities", "image", "imu", "--rounds", "1")
    assert [row["stage"] for row in result["rows"]] == ["alignment"] * 2 + ["instruction"] * 2
    for row in result["rows"]:
        assert row["loss"]["ours"] == pytest.approx(row["loss"]["published"], rel=1e-3)
        assert row["speed_ratio"] > 0
    assert result["instruction"]["memory_ratio"] < 0.6


def test_gpu_in_miniature():
    result = result_of("gpu")
    for task in ("roof", "align", "instruct", "projector", "decoding"):
        assert "failed" not in result[task], result[task]
        assert "left_out" not in result[task]
    assert result["align"]["samples_per_s"] > 0
    assert result["align"]["mfu"] > 0
    assert result["instruct"]["tokens_per_s"] > 0


def test_scaling():
    result = json.loads(run("scaling", "--stage", "align_image").splitlines()[-1])
    rates = [row["rate"] for row in result["align_image"]]
    assert [row["devices"] for row in result["align_image"]] == [8, 16, 32, 64, 128, 256, 512]
    assert rates == sorted(rates)
    assert all(0 <= row["uneven"] < 0.2 for row in result["align_image"])


def test_step_parts():
    result = result_of("step_parts", "--rounds", "1")
    for stage in ("alignment", "instruction"):
        parts = result[stage]["parts"]
        for kind in ("counted", "measured"):
            assert sum(part[kind] for part in parts.values()) == pytest.approx(1, abs=0.01)


def test_memory():
    cases = ["projector, features stored", "llm, two passes of packed rows"]
    result = result_of("memory", "--measure", "--batch", "4", "--cases", *cases)
    assert [row["case"] for row in result["measured"]] == cases
    assert all(row["estimated_mb"] > 0 for row in result["measured"])


def test_dataload_reads_what_webdataset_reads():
    options = ("--seconds", "0.05", "--modalities", "image", "imu", "--workers", "0")
    result = result_of("dataload", *options)
    assert [row["modality"] for row in result["rows"]] == ["image", "imu"]
    assert all(row["samples_per_s_per_core"] > 0 for row in result["rows"])
    assert all(row["ratio"] > 0 and row["at_any_place_per_s"] > 0 for row in result["shards"])
    assert result["workers"][0]["samples_per_s"] > 0


def test_the_runner_answers_as_a_loop_does():
    few = ("--pictures", "2", "--questions", "2", "--new-tokens", "3", "--rounds", "1")
    result = result_of("eval_runner", "--batches", "1", "3", *few)
    assert [row["batch"] for row in result["generate"]] == [1, 3]
    for row in result["generate"]:
        assert row["same_answers_as_loop"] == 1
        assert set(row["ratio"]) == {"loop", "loop_kept"}
    for row in result["likelihood"]:
        assert row["largest_difference"] < 1e-4 and row["ratio"]["pass_per_option"] > 0


def test_scoring_has_the_official_scorers_agree():
    assert "python benchmarks/scoring.py" in run("scoring", "--help")
    result = json.loads(run("scoring", "--predictions", "300").splitlines()[-1])
    assert {"vqa, answers repeat", "vqa, answers all different", "cider"} <= {
        row["what"] for row in result["rows"]
    }
    for row in result["rows"]:
        assert row["ratio"] > 0 and row["largest_difference"] < 1e-9
