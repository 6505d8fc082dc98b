"""The order of samples: a pure function of seed and position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm.data.order import Order, Part, apportion, permute, stable_hash
from onellm.data.plan import Layout, plan
from onellm.errors import ConfigError

parts_lists = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.floats(0.1, 10)),
    min_size=1,
    max_size=5,
).map(lambda rows: [Part(f"{g}/{i}", g, size, w) for i, (g, size, w) in enumerate(rows)])


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_permutations_differ_by_key_and_are_no_identity():
    seen = {tuple(permute(i, 20, key) for i in range(20)) for key in range(50)}
    assert len(seen) == 50
    assert tuple(range(20)) not in seen


def test_billions_cost_nothing():
    places = {permute(i, 10**9, 7) for i in range(1000)}
    assert len(places) == 1000
    assert max(places) < 10**9


def test_hash_is_the_same_everywhere():
    assert stable_hash(0, "image", 3) == 729524290824890935


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(6, 500))
@settings(deadline=None)
def test_apportion_gives_everyone_something(weights, total):
    counts = apportion(weights, total)
    assert min(counts) >= 1
    assert sum(counts) >= total
    if min(weights) / sum(weights) * total >= 1:
        assert sum(counts) == total


def test_a_total_of_the_weights_gives_each_its_own():
    """A share of 1 that floats make a little less took another's part as well."""
    for sizes in ([1, 21, 27], [1, 1, 47], [3, 7, 11, 1]):
        assert apportion(sizes, sum(sizes)) == sizes
        assert apportion([size / 3 for size in sizes], sum(sizes)) == sizes


@given(
    parts_lists,
    st.integers(0, 9),
    st.sampled_from([(8, 1), (8, 2), (8, 4), (12, 3)]),
    st.integers(0, 40),
)
@settings(max_examples=60, deadline=None)
def test_ranks_and_passes_only_slice_the_global_batch(parts, seed, shape, step):
    size, block = shape
    order = Order(parts, seed=seed, batch=size, block=block)
    batch = order.global_batch(step)
    assert batch == Order(parts, seed=seed, batch=size, block=block).global_batch(step)
    for world, per_device in ((1, size), (1, 2), (2, 2), (2, size // 2), (4, 1)):
        if size % (world * per_device):
            continue
        passes = plan(batch, [], Layout(world, per_device))
        assert [draw for devices in passes for rank in devices for draw in rank] == batch
        assert {len(rank) for devices in passes for rank in devices} == {per_device}


@given(parts_lists, st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_by_size_an_epoch_visits_every_example_once(parts, seed):
    parts = [Part(p.name, p.group, p.size, p.size) for p in parts]
    order = Order(parts, seed=seed, batch=1)
    length = sum(p.size for p in parts)
    for epoch in range(2):
        draws = [order.draw(epoch * length + n) for n in range(length)]
        assert len({(d.part, d.index) for d in draws}) == length
        assert {d.epoch for d in draws} == {epoch}


def test_weights_are_kept_and_every_pass_is_complete():
    parts = [Part("a/x", "a", 10, 3.0), Part("b/x", "b", 200, 1.0)]
    order = Order(parts, seed=1, batch=10)
    draws = [order.draw(n) for n in range(2100)]
    share = Counter(d.part for d in draws)
    assert share[0] / share[1] == pytest.approx(3, rel=0.03)
    visits = Counter((d.epoch, d.index) for d in draws if d.part == 0)
    assert set(visits.values()) == {1}
    first = [d.index for d in draws if d.part == 0 and d.epoch == 0]
    second = [d.index for d in draws if d.part == 0 and d.epoch == 1]
    assert first != second


@given(parts_lists, st.sampled_from([2, 4, 8]))
@settings(max_examples=40, deadline=None)
def test_a_block_has_one_group(parts, block):
    order = Order(parts, seed=0, batch=8, block=block)
    for step in range(5):
        groups = [order.parts[d.part].group for d in order.global_batch(step)]
        for start in range(0, 8, block):
            assert len(set(groups[start : start + block])) == 1


@pytest.mark.parametrize(
    ("parts", "batch", "block", "message"),
    [
        ([], 4, 1, "nothing to draw from"),
        ([Part("a", "a", 0)], 4, 1, "a has no examples"),
        ([Part("a", "a", 3, 0.0)], 4, 1, "not positive"),
        ([Part("a", "a", 3)] * 2, 4, 1, "one name"),
        ([Part("a", "a", 3)], 6, 4, "does not divide"),
    ],
)
def test_impossible_orders(parts, batch, block, message):
    with pytest.raises(ConfigError, match=message):
        Order(parts, seed=0, batch=batch, block=block)
