"""Every modality: shapes, published counts and keys, augmentation, thumbnails, shards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from media import SMALL, seeded, shard

from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.registry import get_modality, modality_classes
from onellm.source import Blob, Source

# Signal, tokens before the class token (None: the encoder's patches), spec section 1.2.
PUBLISHED: dict[str, tuple[tuple[int, ...], int | None]] = {
    "audio": ((1, 128, 1024), 1212),
    "depth": ((2, 3, 224, 224), None),
    "fmri": ((1, 15_724), 8),
    "image": ((3, 224, 224), None),
    "imu": ((6, 400), 391),
    "normal": ((2, 3, 224, 224), None),
    "point": ((8192, 6), 1024),
    "video": ((15, 3, 224, 224), None),
}
# Shapes of the published tensors, spec section 2.2.
PUBLISHED_KEYS: dict[str, tuple[int, ...]] = {
    "conv1.audio.weight": (1024, 1, 16, 16),
    "conv1.audio.bias": (1024,),
    "conv1.point.conv1.weight": (1024, 6, 1, 1),
    "conv1.point.conv1.bias": (1024,),
    "conv1.fmri.weight": (8192, 15_724),
    "conv1.fmri.bias": (8192,),
    "conv1.imu.weight": (1024, 6, 10),
}
every_modality = pytest.mark.parametrize("name", sorted(PUBLISHED))


def test_all_eight_are_registered() -> None:
    assert set(PUBLISHED) <= set(modality_classes())


@every_modality
def test_defaults_are_published(name: str) -> None:
    modality = get_modality(name)
    shape, tokens = PUBLISHED[name]
    assert tuple(modality.example().shape) == shape
    tokenizer = modality.build_tokenizer(4)
    if tokens is None:
        assert tokenizer is None
        assert modality.positions == "shared"
        return
    assert tokenizer is not None
    assert modality.positions == "own"
    with torch.no_grad():
        assert tokenizer(modality.example().expand(2, *shape)).shape == (2, tokens, 4)
    layers = [m for m in tokenizer.modules() if list(m.parameters(recurse=False))]
    assert len(layers) == 1, "a tokenizer is a single convolution or linear map"


def test_published_names_and_keys() -> None:
    found: dict[str, tuple[int, ...]] = {}
    for name in PUBLISHED:
        modality = get_modality(name)
        with torch.device("meta"):
            tokenizer = modality.build_tokenizer(1024)
        state = tokenizer.state_dict() if tokenizer else {}
        assert set(modality.published_keys.values()) == set(state)
        found |= {key: tuple(state[p].shape) for key, p in modality.published_keys.items()}
    assert found == PUBLISHED_KEYS
    assert get_modality("rgbd").name == "depth"
    assert get_modality("rgbn").name == "normal"
    assert get_modality("point").published_options == {"grouping": "colour"}


@every_modality
def test_starter_pack(name: str) -> None:
    modality = get_modality(name, **SMALL[name])
    signals = [modality.load(source) for source in shard(name)]
    for signal in signals:
        assert signal.shape == modality.example().shape
        assert signal.dtype == torch.float32
        assert signal.std() > 0
    assert not torch.equal(signals[0], signals[1])
    again = modality.load(next(shard(name)))
    assert torch.equal(signals[0], again), "reading is deterministic"


@every_modality
def test_augment(name: str) -> None:
    modality = get_modality(name, **SMALL[name])
    signal = modality.load(next(shard(name)))
    before = signal.clone()
    one, same, other = (modality.augment(signal, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(signal, before), "the input is left alone"
    assert torch.equal(one, same), "the generator is the only source of randomness"
    assert not torch.equal(one, other)
    assert one.shape == signal.shape
    assert torch.isfinite(one).all()


@every_modality
def test_thumbnail(name: str) -> None:
    picture = get_modality(name, **SMALL[name]).thumbnail(next(shard(name)))
    assert picture.mode == "RGB"
    assert max(picture.size) <= 160
    assert np.asarray(picture).std() > 5, "something can be seen"


@every_modality
def test_gradients_and_batch_independence(name: str) -> None:
    modality = get_modality(name, **SMALL[name])
    torch.manual_seed(0)
    tokenizer = modality.build_tokenizer(8)
    if tokenizer is None:
        return
    batch = torch.stack([modality.load(source) for source in shard(name)])
    together = tokenizer(batch)
    alone = torch.cat([tokenizer(signal[None]) for signal in batch])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    together.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


@every_modality
def test_half_precision_tokenizer(name: str) -> None:
    modality = get_modality(name, **SMALL[name])
    tokenizer = modality.build_tokenizer(8)
    if tokenizer is not None:
        tokens = tokenizer.bfloat16()(modality.load(next(shard(name)))[None])
        assert tokens.dtype == torch.bfloat16


@every_modality
def test_options_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match="max_megabytes"):
        get_modality(name, max_megabyte=1)


def test_captions() -> None:
    prompts = {name: get_modality(name).caption_prompt for name in PUBLISHED}
    assert prompts["imu"] == "Describe the motion."
    assert prompts["fmri"] == "Describe the scene based on fMRI data."
    for name in ("image", "video", "audio"):
        assert prompts[name] == f"Provide a one-sentence caption for the provided {name}."


def test_from_shard_pairs_and_facts() -> None:
    files = {"png": b"map", "rgb.jpg": b"picture", "txt": b"words"}
    for name in ("depth", "normal"):
        rgb, plane = get_modality(name).from_shard(files, {}, "k")
        assert (rgb, plane) == (Blob("k.rgb.jpg", b"picture"), Blob("k.png", b"map"))
        assert get_modality(name).from_shard({"png": b"map"}, {}, "k") == Blob("k.png", b"map")
    imu = get_modality("imu").from_shard({"npy": b"x"}, {"rate_hz": 10}, "k")
    assert imu == {"data": Blob("k.npy", b"x"), "rate_hz": 10}


@every_modality
def test_from_shard_without_the_medium(name: str) -> None:
    choose: Callable[..., Source] = get_modality(name).from_shard
    with pytest.raises(BadInput, match=r"k: .*one member"):
        choose({"txt": b"words"}, {}, "k")


def test_every_option_has_a_default() -> None:
    for cls in modality_classes().values():
        assert isinstance(cls(), Modality)
