"""How a step's samples are laid out over devices and passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm.data.plan import Layout, padding_share, plan
from onellm.errors import ConfigError


def llava_like(count: int, seed: int = 0) -> list[int]:
    """Positions of samples as in LLaVA's mix of 665 thousand: short answers, talks, long chats.

    Some 60 % short questions and answers about a picture, 35 % conversations of some hundred
    tokens, 5 % shared chats of text alone up to 2,048.
    """
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, count, p=[0.6, 0.35, 0.05])
    centre, spread = np.array([80, 320, 1100])[kinds], np.array([0.5, 0.45, 0.6])[kinds]
    text = np.exp(np.log(centre) + spread * rng.standard_normal(count))
    return (np.minimum(text, 2016) + 32 * (kinds < 2)).astype(int).tolist()


lengths_lists = st.lists(st.integers(1, 500), min_size=16, max_size=16)


@given(lengths_lists, st.sampled_from([(1, 2), (2, 2), (4, 1), (2, 4), (1, 16)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_sample_once_and_every_device_as_many_passes(lengths, shape, pack):
    world, per_device = shape
    for arrange in ("order", "length"):
        layout = Layout(world, per_device, arrange, pack)
        passes = plan(range(16), lengths, layout)
        assert all(len(devices) == world for devices in passes)
        assert all(group for devices in passes for group in devices)
        assert sorted(i for devices in passes for group in devices for i in group) == [*range(16)]
        assert len(passes) == 16 // (world * per_device)
        if not pack:
            assert all(len(g) == per_device for devices in passes for g in devices)


@given(lengths_lists, st.sampled_from([1, 2, 4]), st.integers(500, 3000))
@settings(max_examples=60, deadline=None)
def test_packed_rows_keep_within_their_length(lengths, world, tokens):
    layout = Layout(world, 1, "length", True, tokens)
    passes = plan(range(16), lengths, layout)
    rows = [sum(lengths[i] for i in group) for devices in passes for group in devices]
    assert max(rows) <= tokens
    assert sorted(i for devices in passes for g in devices for i in g) == [*range(16)]
    assert all(g for devices in passes for g in devices)
    # No more passes than a plan that fills rows to three quarters would need.
    assert len(passes) <= max(1, -(-sum(lengths) // int(0.5 * tokens * world)))


def test_blocks_stay_together():
    """A block is of one modality: no pass may reach across its border."""
    lengths = llava_like(64)
    for pack in (False, True):
        passes = plan(range(64), lengths, Layout(2, 4, "length", pack, block=16))
        for devices in passes:
            assert len({i // 16 for group in devices for i in group}) == 1


def test_a_sample_too_long_for_a_row_is_refused():
    with pytest.raises(ConfigError, match="a sample of 30 positions does not fit into a row of 20"):
        plan([0, 1], [30, 5], Layout(1, 1, "length", True, 20))


def groups_of(lengths: list[int], batch: int, layout: Layout) -> list[list[list[int]]]:
    """Lengths in each pass of each device, over all steps."""
    passes: list[list[list[int]]] = []
    for start in range(0, len(lengths) - batch + 1, batch):
        own = lengths[start : start + batch]
        passes += plan(own, own, layout)
    return passes


def test_padding_on_lengths_like_llavas():
    """The published recipe pads to 2,048; batches as they come waste half; we at most 5 %."""
    lengths = llava_like(512 * 8)
    share = {}
    for name, layout in {
        "as they come": Layout(8, 4),
        "by length": Layout(8, 4, "length"),
        "packed": Layout(8, 4, "length", True, 4096),
    }.items():
        groups = [g for devices in groups_of(lengths, 512, layout) for g in devices]
        share[name] = padding_share(groups, pack=layout.pack)
    assert 1 - sum(lengths) / (2048 * len(lengths)) > 0.85
    assert share["as they come"] > 0.4
    assert share["by length"] <= 0.05
    assert share["packed"] == 0


def test_devices_of_a_pass_have_the_same_to_do():
    lengths = llava_like(512 * 8, seed=1)
    for layout, most in (
        (Layout(8, 4, "length"), 1.15),
        (Layout(8, 4, "length", True, 4096), 1.15),
    ):
        waits = [
            max(map(sum, devices)) / (sum(map(sum, devices)) / len(devices))
            for devices in groups_of(lengths, 512, layout)
        ]
        assert np.mean(waits) < most
    as_they_come = [
        max(map(sum, devices)) / (sum(map(sum, devices)) / len(devices))
        for devices in groups_of(lengths, 512, Layout(8, 4))
    ]
    assert np.mean(as_they_come) > 1.5
