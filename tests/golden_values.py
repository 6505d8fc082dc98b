"""Values of the official scorers, from ``$ONELLM_GOLDEN`` (``../shared/golden`` by default)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(os.environ.get("ONELLM_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))


def golden(name: str) -> Any:
    """A file of golden values; the test is skipped where there is none."""
    path = GOLDEN / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no golden values at {path}; set $ONELLM_GOLDEN")
    return json.loads(path.read_text(encoding="utf-8"))
