"""The tree is what docs/architecture.md says, installed or not (design §2)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AREAS = ("tokenizers", "projection", "data", "train", "eval")


def run(code: str, cwd: Path, *, checkout: bool = False) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if checkout:
        env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("area", AREAS)
def test_areas_are_folders_with_a_link_and_no_init(area):
    assert (ROOT / area).is_dir()
    assert not (ROOT / area / "__init__.py").exists()
    link = ROOT / "onellm" / area
    assert link.is_symlink()
    assert os.readlink(link) == f"../{area}"


def test_nothing_puts_the_root_on_the_path():
    assert not (ROOT / "conftest.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()


@pytest.mark.parametrize("inside", [True, False])
def test_hugging_face_tokenizers_is_not_hidden(inside, tmp_path):
    where = run(
        "import tokenizers; print(tokenizers.__file__)", ROOT if inside else tmp_path, checkout=True
    )
    assert "site-packages" in where


@pytest.mark.parametrize("inside", [True, False])
def test_areas_import_under_onellm(inside, tmp_path):
    code = "import onellm.projection.upm as m; print(m.UPM.__module__)"
    out = run(code, ROOT if inside else tmp_path, checkout=True)
    assert out == "onellm.projection.upm"


def test_import_is_lazy(tmp_path):
    code = (
        "import sys, onellm; heavy = {'torch', 'numpy', 'transformers', 'pydantic'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(code, tmp_path, checkout=True) == "[]"


def test_public_names_resolve():
    import onellm

    for name in onellm.__all__:
        assert getattr(onellm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onellm.nothing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    code = (
        "import sys; from setuptools import setup; sys.argv = ['setup.py', '-q', 'egg_info',"
        f"'--egg-base', {str(out)!r}, 'build', '--build-base', {str(out / 'b')!r},"
        f"'bdist_wheel', '-d', {str(out)!r}]; exec(open('setup.py').read())"
    )
    run(f"__file__ = {str(ROOT / 'setup.py')!r}\n{code}", ROOT)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = [n for n in wheel.namelist() if ".dist-info/" not in n]
    assert {n.split("/")[0] for n in names} == {"onellm"}
    sources = [p for area in AREAS for p in (ROOT / area).rglob("*.py")]
    for source in sources:
        assert f"onellm/{source.relative_to(ROOT)}" in names
    assert "onellm/py.typed" in names
    assert "onellm/data/starter/ATTRIBUTION.csv" in names
    assert "onellm/train/configs/align_image.yaml" in names
    assert "onellm/presets/small.yaml" in names
    assert "onellm/eval/tasks/gqa.yaml" in names
    assert "onellm/eval/page.css" in names
    shards = [n for n in names if n.endswith(".tar")]
    assert len(shards) == 16
    assert len(names) == len(set(names))


PYTHON_FILES = [p for area in AREAS for p in (ROOT / area).rglob("*.py")]
PYTHON_FILES += [p for folder in ("onellm", "tests") for p in (ROOT / folder).glob("*.py")]


def test_imports_of_our_own_are_absolute():
    for path in PYTHON_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_no_module_is_named_after_the_standard_library():
    for path in PYTHON_FILES:
        if path.stem not in ("__init__", "__main__"):
            assert path.stem not in sys.stdlib_module_names, path
            assert path.stem not in ("utils", "misc", "helpers"), path


def test_no_modality_is_named_outside_its_file():
    from onellm.registry import modality_classes

    names = set(modality_classes())
    for path in PYTHON_FILES:
        # Readers look up the keys of official files, some of which are called "image" or "video".
        if path.parent.name in ("tokenizers", "tests", "readers"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path}:{node.lineno} names {node.value!r}"
