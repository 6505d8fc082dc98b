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


@pytest.mark.parametrize("name", ["dataload", "decode", "encode"])
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


def test_dataload_reads_what_webdataset_reads():
    options = ("--seconds", "0.05", "--modalities", "image", "imu", "--workers", "0")
    result = result_of("dataload", *options)
    assert [row["modality"] for row in result["rows"]] == ["image", "imu"]
    assert all(row["samples_per_s_per_core"] > 0 for row in result["rows"])
    assert all(row["ratio"] > 0 and row["at_any_place_per_s"] > 0 for row in result["shards"])
    assert result["workers"][0]["samples_per_s"] > 0
