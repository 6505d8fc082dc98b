"""What the README shows works as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from onellm import registry
from onellm.errors import BadInput
from onellm.llm import build_llama
from onellm.model import OneLLM

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def tactile(monkeypatch):
    """The modality of the README, registered for one test."""
    registry.modality_classes()
    monkeypatch.setattr(registry, "_MODALITIES", dict(registry._MODALITIES))
    code = re.search(r"<!-- tested: tests/test_readme.py -->\n```python\n(.*?)```", README, re.S)
    assert code is not None
    exec(code.group(1), {"__name__": "readme"})


@pytest.mark.parametrize("decorated", [True, False])
def test_the_command_line_finds_a_modality_of_another_package(tmp_path, decorated):
    """As if the README's class and its line of setup had been installed."""
    code = re.search(r"<!-- tested: tests/test_readme.py -->\n```python\n(.*?)```", README, re.S)
    line = re.search(r'entry_points=\{"(onellm\.modalities)": \["(tactile = [\w.:]+)"\]\}', README)
    assert code is not None
    assert line is not None
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").touch()
    decorator = "@onellm.register_modality\n"  # the entry point says as much
    source = code.group(1) if decorated else code.group(1).replace(decorator, "")
    assert (decorator in source) == decorated
    (tmp_path / "my_package/tactile.py").write_text(source)
    (info := tmp_path / "my_package-1.0.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{line.group(1)}]\n{line.group(2)}\n")
    done = subprocess.run(
        [sys.executable, "-m", "onellm", "ls", "modalities"],
        **{"capture_output": True, "text": True, "cwd": ROOT, "check": True},
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert "tactile" in done.stdout


def test_a_modality_is_one_class(tactile, tmp_path):
    config = tiny.tiny_model("image").config
    config = config.model_copy(update={"modalities": {"image": {"size": 28}, "tactile": {}}})
    llm = build_llama(vocab=320, width=32, layers=1, heads=2, hidden=64)
    model = OneLLM(config, llm, tiny.tiny_text())
    np.save(tmp_path / "touch.npy", np.ones((20, 16, 16), np.float32))
    media = [("tactile", str(tmp_path / "touch.npy")), ("image", torch.rand(3, 28, 28))]
    assert isinstance(model.generate("What is this?", media, max_new_tokens=3), str)
    assert model.positions["tactile"].shape == (17, 32)
    model.save_pretrained(tmp_path / "model")
    again = OneLLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again.tags["start"]["tactile"], model.tags["start"]["tactile"])
    (tmp_path / "broken.npy").write_bytes(b"nonsense")
    with pytest.raises(BadInput, match=r"broken\.npy: expected a tactile signal"):
        model.generate("What is this?", [("tactile", str(tmp_path / "broken.npy"))])


def test_files_it_names_are_there():
    for name in re.findall(r"\b(\w+\.py)\b", README):
        assert any(ROOT.glob(f"*/{name}")), name
    for link in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / link).exists(), link


def test_samples_it_asks_about_come_with_the_package():
    tars = re.search(r"for m in ([\w ]+); do tar xf data/starter/\$m-test\.tar", README)
    assert tars is not None
    members: set[str] = set()
    for name in tars.group(1).split():
        with tarfile.open(ROOT / "data" / "starter" / f"{name}-test.tar") as shard:
            members |= set(shard.getnames())
    shown = set(re.findall(r"media/([\w.-]+\.\w+)", README))
    assert len(shown) >= 2 and shown <= members


def test_its_first_two_commands_are_targets_of_the_makefile():
    first = re.search(r"```bash\n(.*?)```", README, re.S)
    assert first is not None
    targets = re.findall(r"^make (\w+)", first.group(1), re.M)
    assert targets == ["quickstart", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_files_are_where_it_says():
    said = README.split("## Where things are")[1].split("```")[1]
    areas = re.split(r"^(\w+)/ ", said, flags=re.M)[1:]
    for area, words in zip(areas[::2], areas[1::2], strict=True):
        for name in re.findall(r"\b[\w/]+\.py\b", words):
            assert (ROOT / area / name).is_file(), f"{area}/{name}"
