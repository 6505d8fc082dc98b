"""The published model at tiny size: every golden output, to 1e-5 (spec §1.8)."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from onellm.errors import CheckpointError, ConfigError
from onellm.generation import decode
from onellm.model import OneLLM

PARITY = Path(os.environ.get("ONELLM_PARITY", Path(__file__).parents[2] / "shared" / "parity"))
PARAMS = {"dim": 64, "n_layers": 3, "n_heads": 4, "multiple_of": 16, "norm_eps": 1e-5}
CLIP = {"width": 64, "layers": 2, "heads": 4, "patch_size": 14, "image_size": 224}
SHAPES = {
    "image": (1, (2, 3, 224, 224)),
    "video": (2, (2, 3, 3, 224, 224)),
    "audio": (3, (2, 1, 128, 1024)),
    "point": (4, (2, 2048, 6)),
    "rgbd": (5, (2, 2, 3, 224, 224)),
    "rgbn": (6, (2, 2, 3, 224, 224)),
    "imu": (8, (2, 6, 400)),
}

needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason=f"no parity fixtures in {PARITY}; set $ONELLM_PARITY"
)
pytestmark = needs_parity


def draw(key: str, shape: list[int]) -> torch.Tensor:
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) == 1 and key.endswith("weight"):
        return torch.as_tensor(1 + 0.1 * z)
    return torch.as_tensor(z * (0.05 if len(shape) < 2 else 0.1))


def signal(name: str) -> torch.Tensor:
    seed, shape = SHAPES[name]
    state = np.random.RandomState(seed)
    data = state.random_sample(shape) if name == "point" else state.standard_normal(shape)
    return torch.as_tensor(data.astype(np.float32))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    shapes = json.loads((PARITY / "shapes.json").read_text())
    return {key: draw(key, shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def model(state: dict[str, torch.Tensor]) -> OneLLM:
    return OneLLM.from_official(state, params=PARAMS, clip=CLIP)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(PARITY / "golden_tiny.npz"))


@pytest.fixture(scope="module")
def tokens(golden: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.as_tensor(golden["tokens"]).long()


def close(ours: torch.Tensor, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_encoder_and_logits(name, model, golden, tokens):
    x = signal(name)
    with torch.no_grad():
        close(model.encode(name, x), golden[f"enc_{name}"])
        close(model(tokens, media=[(name, x)]), golden[f"logits_{name}"])


def test_text_only_logits(model, golden, tokens):
    with torch.no_grad():
        close(model(tokens), golden["logits_text"])


def test_router_table(model, golden):
    table = model.projector.router_table("image").detach()
    close(table.expand(2, -1, -1), golden["router_image"])


def test_first_projection(model, golden):
    with torch.no_grad():
        features = model.features("image", signal("image"))
        close(model.projector.proj_in["image"](features.x_BND), golden["clipfeat_image"])


@pytest.mark.parametrize(("legacy", "key"), [(False, "decode_off32"), (True, "decode_off30")])
def test_cached_decoding(legacy, key, model, golden, tokens):
    """Prefill 5 tokens with an image, then feed the rest one by one through the cache."""
    soft = model.encode("image", signal("image"))
    spliced = model.splice(
        list(tokens[:, :5]), None, [[("image", soft[b])] for b in range(2)], side="left"
    )
    rows: list[torch.Tensor] = []

    def teacher(logits_BV: torch.Tensor) -> torch.Tensor:
        rows.append(logits_BV)
        return tokens[:, min(4 + len(rows), 8)]

    steps = decode(model, spliced, teacher, legacy_decode_offset=legacy)
    for _ in range(5):
        next(steps)
    close(torch.stack(rows, 1), golden[key])


def test_a_missing_key_is_named(state):
    broken = {k: v for k, v in state.items() if k != "routers.imu.fc2.bias"}
    with pytest.raises(CheckpointError, match=r"1 missing: routers\.imu\.fc2\.bias"):
        OneLLM.from_official(broken, params=PARAMS, clip=CLIP)


def test_an_unexpected_key_is_named(state):
    with pytest.raises(CheckpointError, match=r"1 unexpected: layers\.3\.extra"):
        OneLLM.from_official({**state, "layers.3.extra": torch.ones(1)}, params=PARAMS, clip=CLIP)


def test_a_wrong_shape_is_named(state):
    with pytest.raises(CheckpointError, match=r"norm\.weight: expected \(64,\), found \(63,\)"):
        broken = {**state, "norm.weight": torch.ones(63)}
        OneLLM.from_official(broken, params=PARAMS, clip=CLIP)


def test_files_that_are_no_weights_are_named(tmp_path):
    file = tmp_path / "consolidated.00-of-01.pth"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"00-of-01\.pth: expected weights"):
        OneLLM.from_official(file, params=PARAMS, clip=CLIP)
    torch.save([1], file)
    with pytest.raises(CheckpointError, match="expected a state dict; found list"):
        OneLLM.from_official(tmp_path, params=PARAMS, clip=CLIP)


def test_settings_are_checked(state):
    with pytest.raises(ConfigError, match="params: missing multiple_of"):
        some = {k: v for k, v in PARAMS.items() if k != "multiple_of"}
        OneLLM.from_official(state, params=some, clip=CLIP)
    with pytest.raises(ConfigError, match=r"clip: unknown key 'widht'.*Did you mean 'width'"):
        OneLLM.from_official(state, params=PARAMS, clip={**CLIP, "widht": 1})


def test_the_prefix_is_optional(state, model):
    prefixed = {f"llma.{k}": v for k, v in state.items()}
    again = OneLLM.from_official(prefixed, params=PARAMS, clip=CLIP)
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_modality_without_keys_is_left_out(state, model):
    assert "fmri" not in model.modalities
    without = {k: v for k, v in state.items() if "imu" not in k}
    assert "imu" not in OneLLM.from_official(without, params=PARAMS, clip=CLIP).modalities
