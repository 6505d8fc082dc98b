"""Unusable files of every modality end in one readable error, never in a decoder's traceback.

:mod:`makers` says how to make a good file of each modality and its bad relatives.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from makers import MAKERS, built_in, refused, small

from onellm.errors import BadInput
from onellm.source import Blob, Source

every_modality = pytest.mark.parametrize("name", built_in())


def test_every_modality_has_makers() -> None:
    assert built_in() == sorted(MAKERS)


@every_modality
def test_good(name: str, tmp_path: Path) -> None:
    path = MAKERS[name].good(tmp_path)
    modality = small(name)
    from_path = modality.load(path)
    from_blob = modality.load(Blob(path.name, path.read_bytes()))
    assert from_path.equal(from_blob)
    assert from_path.equal(modality.load({"data": str(path)}))


@every_modality
def test_missing(name: str, tmp_path: Path) -> None:
    path = tmp_path / MAKERS[name].good(tmp_path).name.replace("a.", "gone.")
    assert refused(small(name), str(path)).found == "no such file"


@every_modality
def test_empty(name: str, tmp_path: Path) -> None:
    path = MAKERS[name].good(tmp_path)
    path.write_bytes(b"")
    assert refused(small(name), path).found == "an empty file"
    refused(small(name), Blob(path.name, b""))


@every_modality
def test_impossible_names(name: str) -> None:
    suffix = small(name).suffixes[0]
    for path in ("x" * 5000 + suffix, f"a\0b{suffix}", f"+{suffix}", f"a+b+c{suffix}"):
        with pytest.raises(BadInput):
            small(name).load(path)


@every_modality
def test_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / MAKERS[name].good(tmp_path).name.replace("a.", "folder.")
    path.mkdir()
    assert refused(small(name), path).found == "a folder"


@every_modality
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_truncated(name: str, share: float, tmp_path: Path) -> None:
    path = MAKERS[name].good(tmp_path)
    data = path.read_bytes()
    refused(small(name), Blob(path.name, data[: max(1, int(len(data) * share))]))


@every_modality
def test_text_by_another_name(name: str, tmp_path: Path) -> None:
    for suffix in small(name).suffixes:
        path = tmp_path / f"text{suffix}"
        path.write_text("Dear reader, this is a letter and nothing else.\n" * 40)
        refused(small(name), path)


@every_modality
def test_noise_by_another_name(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).bytes(5000)
    for suffix in small(name).suffixes:
        refused(small(name), Blob(f"noise{suffix}", noise))


@every_modality
def test_foreign_suffix(name: str, tmp_path: Path) -> None:
    data = MAKERS[name].good(tmp_path).read_bytes()
    error = refused(small(name), Blob(f"a{MAKERS[name].foreign}", data))
    assert small(name).suffixes[0] in error.expected
    refused(small(name), Blob("a", data))


@every_modality
def test_too_large(name: str, tmp_path: Path) -> None:
    path = MAKERS[name].good(tmp_path)
    error = refused(small(name, max_megabytes=1e-5), path)
    assert "MB" in error.expected
    assert "max_megabytes" in error.hint


@every_modality
def test_not_a_number(name: str, tmp_path: Path) -> None:
    assert "NaN" in refused(small(name), MAKERS[name].not_a_number(tmp_path)).found


@every_modality
def test_one_sample(name: str, tmp_path: Path) -> None:
    source = MAKERS[name].one_sample(tmp_path)
    if MAKERS[name].one_sample_is_legal:
        assert small(name).load(source).shape == small(name).example().shape
    else:
        refused(small(name), source)


@every_modality
@pytest.mark.parametrize("source", [None, 7, {}, {"label": "x"}, [], (), "", "x" * 5000, object()])
def test_no_source_at_all(name: str, source: Source) -> None:
    with pytest.raises(BadInput):
        small(name).load(source)


@every_modality
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 6)),
        np.zeros((2, 2, 2, 2, 2)),
        np.array(["a", "b"]),
        np.array([None, {}], dtype=object),
        np.zeros((5, 7)) + 1j,
    ],
    ids=["empty", "five axes", "text", "objects", "complex"],
)
def test_arrays_of_the_wrong_kind(name: str, array: np.ndarray) -> None:
    if name == "fmri" and array.ndim == 5:
        pytest.skip("a volume may have any shape")
    with pytest.raises(BadInput):
        small(name).load(array)


@every_modality
def test_thumbnails_fail_alike(name: str, tmp_path: Path) -> None:
    path = MAKERS[name].good(tmp_path)
    with pytest.raises(BadInput, match=path.name):
        small(name).thumbnail(Blob(path.name, path.read_bytes()[:20]))


@every_modality
@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes(name: str, seed: int, tmp_path: Path) -> None:
    """Damage in the middle of a file is loaded or refused, but nothing else happens."""
    path = MAKERS[name].good(tmp_path)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    # Headers are short, so half of the damage goes there.
    places = [*rng.integers(0, len(data), 5), *rng.integers(0, min(128, len(data)), 5)]
    for place in places:
        data[place] = int(rng.integers(256))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            small(name).load(Blob(path.name, bytes(data)))
        except BadInput as error:
            assert path.name in str(error)
