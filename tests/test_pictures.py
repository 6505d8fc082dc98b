"""Reading pictures, and pairs of a picture with a depth or normal map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from media import ramp, seeded
from PIL import Image as PillowImage

from onellm.errors import BadInput
from onellm.registry import get_modality
from onellm.source import Blob
from onellm.tokenizers import pictures


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (224, 224), (40, 30)])
def test_image_transform_is_the_usual_one(size: tuple[int, int]) -> None:
    from torchvision import transforms as tv

    picture = ramp(*size)
    usual = tv.Compose(
        [
            tv.Resize(224, tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(224),
            tv.ToTensor(),
            tv.Normalize(pictures.CLIP_MEAN, pictures.CLIP_STD),
        ]
    )
    torch.testing.assert_close(get_modality("image").load(picture), usual(picture))


def test_image_sources_agree(tmp_path: Path) -> None:
    picture = ramp(64, 48)
    picture.save(tmp_path / "a.PNG")
    array = np.asarray(picture)
    data = (tmp_path / "a.PNG").read_bytes()
    chw = torch.from_numpy(array.copy()).permute(2, 0, 1)
    image = get_modality("image", size=32)
    expected = image.load(picture)
    sources = [str(tmp_path / "a.PNG"), tmp_path / "a.PNG", Blob("x.png", data), array, chw]
    for source in [*sources, array / 255.0, chw / 255.0, {"data": array, "label": "x"}]:
        torch.testing.assert_close(image.load(source), expected)


def test_exif_orientation(tmp_path: Path) -> None:
    picture = ramp(64, 48)
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    image = get_modality("image", size=32)
    torch.testing.assert_close(image.load(tmp_path / "turned.png"), image.load(picture))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(mode: str, tmp_path: Path) -> None:
    clear = PillowImage.new("RGBA", (16, 16), (10, 20, 30, 0))
    if mode == "P":
        clear = PillowImage.new("P", (16, 16), 0)
        clear.info["transparency"] = 0
    clear.convert(mode).save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    image = get_modality("image", size=16)
    white = image.load(np.full((16, 16, 3), 255, np.uint8))
    torch.testing.assert_close(image.load(tmp_path / "a.png"), white)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16", "F"])
def test_picture_modes(mode: str, tmp_path: Path) -> None:
    grey = ramp(16, 16).getchannel(0)
    if mode == "I;16":
        wide = PillowImage.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        wide.save(tmp_path / "a.png")
        image = get_modality("image", size=16)
        torch.testing.assert_close(image.load(tmp_path / "a.png"), image.load(grey))
        return
    grey.convert(mode).save(tmp_path / "a.tif")
    assert get_modality("image", size=16).load(tmp_path / "a.tif").std() > 0


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = (PillowImage.new("RGB", (16, 16), c) for c in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    image = get_modality("image", size=16)
    torch.testing.assert_close(image.load(tmp_path / "a.gif"), image.load(first))


def test_image_flip() -> None:
    signal = get_modality("image", size=32).load(ramp(32, 32))
    mirror = get_modality("image", size=32, flip=1.0, crop_scale=(1.0, 1.0))
    keep = get_modality("image", size=32, flip=0.0, crop_scale=(1.0, 1.0))
    turned, kept = (m.augment(signal, seeded()) for m in (mirror, keep))
    torch.testing.assert_close(turned, kept.flip(-1))


# -- depth and normal ---------------------------------------------------------------------------


def test_pair_sources_agree(tmp_path: Path) -> None:
    rgb, plane = ramp(64, 48), ramp(32, 24).getchannel(0)
    rgb.save(tmp_path / "rgb.png")
    plane.save(tmp_path / "a+b.png")
    first, second = str(tmp_path / "rgb.png"), str(tmp_path / "a+b.png")
    for name in ("depth", "normal"):
        modality = get_modality(name, size=32)
        expected = modality.load((rgb, plane))
        both = f"{first}+{second}"
        for source in [(first, second), [first, second], both, {"rgb": first, "map": second}]:
            torch.testing.assert_close(modality.load(source), expected)
        torch.testing.assert_close(expected[0], get_modality("image", size=32).load(rgb))


def test_map_alone_stands_in_for_the_picture() -> None:
    plane = ramp(32, 32)
    for name in ("depth", "normal"):
        signal = get_modality(name, size=32).load(plane)
        assert torch.equal(signal[0], signal[1])


def test_half_a_pair_is_missing(tmp_path: Path) -> None:
    ramp(32, 32).save(tmp_path / "rgb.png")
    with pytest.raises(BadInput, match=r"depth\.png: .*no such file"):
        get_modality("depth").load(f"{tmp_path / 'rgb.png'}+{tmp_path / 'depth.png'}")


def test_depth_formats_agree(tmp_path: Path) -> None:
    millimetres = np.linspace(0, 5000, 48 * 64).reshape(48, 64).astype(np.uint16)
    millimetres[:4] = 0
    PillowImage.fromarray(millimetres).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", millimetres.astype(np.float32) / 1000)
    depth = get_modality("depth", size=48)
    expected = depth.load(millimetres)
    for source in (tmp_path / "a.png", tmp_path / "a.npy", millimetres[..., None] * 2.0):
        torch.testing.assert_close(depth.load(source), expected)
    grey = pictures.denormalise(expected[1])[0] * 255
    assert grey[:4].abs().max() < 1e-3, "nothing measured stays black"
    assert grey.max() > 200


def test_normal_flip_turns_the_vectors() -> None:
    normals = np.zeros((32, 32, 3), np.uint8)
    normals[:, :16] = (230, 128, 200)  # leaning to the right, on the left side only
    modality = get_modality("normal", size=32, flip=1.0, crop_scale=(1.0, 1.0))
    signal = modality.load(normals)
    mirror = modality.mirror_map(signal[1])  # type: ignore[attr-defined]
    rgb = (pictures.denormalise(mirror) * 255).round()
    assert rgb[:, 8, 24].tolist() == [25, 128, 200]
    assert rgb[:, 8, 8].tolist() == [0, 0, 0], "nothing there stays black"
    assert torch.allclose(modality.mirror_map(mirror), signal[1], atol=1e-5)  # type: ignore[attr-defined]


def test_pair_crops_are_shared() -> None:
    modality = get_modality("depth", size=32, crop_scale=(0.3, 0.5), flip=0.5)
    signal = modality.load(ramp(32, 32))
    for seed in range(4):
        varied = modality.augment(signal, seeded(seed))
        torch.testing.assert_close(varied[0], varied[1])
