"""The full-width script, at 64 channels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_full_width_script_runs_at_tiny_size(tmp_path):
    script = ROOT / "benchmarks" / "full_width.py"
    done = subprocess.run(
        [sys.executable, script, "--tiny", "--folder", tmp_path, "--tokens", "3"],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 280},
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["benchmark"] == "full_width"
    assert report["write"]["parts"] > 1
    assert report["same_answer"]
    assert report["load"]["answer"].count("<") == 3
    assert report["load"]["dtype"] == report["reload"]["dtype"] == "bfloat16"
    assert report["convert"]["file_bytes"] > report["load"]["parameter_bytes"]
    assert all(report[step]["peak_bytes"] > 0 for step in ("write", "load", "convert", "reload"))
