"""Recordings: sound, motion and brain responses."""

from __future__ import annotations

import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from media import shard

from onellm.errors import BadInput
from onellm.registry import get_modality
from onellm.source import Blob
from onellm.tokenizers import waveforms
from onellm.tokenizers.fmri import FmriTokenizer

# -- audio ----


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_audio_files(suffix: str, tmp_path: Path) -> None:
    audio = get_modality("audio", frames=96)
    soundfile.write(tmp_path / f"a{suffix}", tone(1.0, 32_000), 32_000)
    expected = audio.load({"data": tone(1.0), "rate_hz": 16_000})
    got = audio.load(tmp_path / f"a{suffix}")
    loud = expected > expected.mean() + 2 * expected.std()
    assert (got - expected)[loud].abs().mean() < 0.03


def test_resampling_is_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    wave = tone(0.5, 44_100)
    by_librosa = librosa.resample(wave, orig_sr=44_100, target_sr=16_000)
    source = {"data": wave, "rate_hz": 44_100}
    ours = waveforms.read_wave(source, rate_hz=16_000, seconds=1.0, max_megabytes=1.0)
    np.testing.assert_allclose(ours, by_librosa[: len(ours)], atol=1e-6)


def test_channels_are_averaged() -> None:
    left, right = tone(0.5), tone(0.5, hertz=3000)
    audio = get_modality("audio", frames=40)
    stereo = audio.load({"data": np.stack([left, right]), "rate_hz": 16_000})
    mono = audio.load({"data": (left + right) / 2, "rate_hz": 16_000})
    torch.testing.assert_close(stereo, mono)
    torch.testing.assert_close(audio.load(np.stack([left, right], axis=1)), mono)


def test_integer_samples_are_scaled() -> None:
    audio = get_modality("audio", frames=40)
    wave = tone(0.5)
    whole = np.round(wave * 32_768).astype(np.int16)
    signed, unsigned = audio.load(whole), audio.load((whole.astype(int) + 32_768).astype(np.uint16))
    torch.testing.assert_close(signed, unsigned, atol=1e-3, rtol=0)
    loud = signed > 0
    assert (signed - audio.load(wave))[loud].abs().max() < 0.05


def test_short_and_long_audio() -> None:
    audio = get_modality("audio", frames=100)
    short, long = audio.load(tone(0.5)), audio.load(tone(5.0))
    torch.testing.assert_close(short[..., 48:], torch.full((1, 128, 52), 0.46703774))
    torch.testing.assert_close(short[..., :48], long[..., :48], atol=1e-3, rtol=0)
    assert audio.load(tone(0.025))[0, :, 1:].std() < 1e-6, "one window is the shortest sound"


# -- IMU ----


def traces(rows: int = 100, rate: float = 50.0) -> np.ndarray:
    time = np.arange(rows) / rate
    return np.stack([np.sin(2 * np.pi * (1 + c) * time) for c in range(6)], axis=1)


def csv(table: np.ndarray, header: str = "", separator: str = ",") -> Blob:
    file = io.StringIO()
    np.savetxt(file, table, delimiter=separator, header=header, comments="")
    return Blob("a.csv", file.getvalue().encode())


def test_imu_shapes_agree(tmp_path: Path) -> None:
    imu = get_modality("imu", steps=100, rate_hz=50)
    x = traces()
    expected = torch.from_numpy(x.T).float()
    np.save(tmp_path / "a.npy", x.T)
    for source in (x, x.T, x[None], tmp_path / "a.npy", csv(x), csv(x, separator="\t")):
        torch.testing.assert_close(imu.load(source), expected)
    assert imu.load(x[:60])[:, 60:].abs().sum() == 0, "zeros behind the end"
    torch.testing.assert_close(imu.load(traces(500)), expected)


@pytest.mark.parametrize(
    ("title", "unit"),
    [("time_s", 1), ("time [ms]", 1e3), ("timestamp_ns", 1e9), ("time", 1e3), (None, 1e6)],
)
def test_imu_time_column(title: str | None, unit: float) -> None:
    x = traces(100, rate=50)
    time = 17.0 * unit + np.arange(100) / 50 * unit
    header = f"{title},ax,ay,az,gx,gy,gz" if title else ""
    imu = get_modality("imu", steps=100, rate_hz=50)
    got = imu.load(csv(np.concatenate([time[:, None], x], axis=1), header))
    torch.testing.assert_close(got, torch.from_numpy(x.T).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [20.0, 100.0, 333.0])
def test_imu_resampling(rate: float) -> None:
    imu = get_modality("imu", steps=100, rate_hz=50)
    got = imu.load({"data": traces(int(2.5 * rate), rate), "rate_hz": rate})
    slow = got[:3, 10:90] - torch.from_numpy(traces().T[:3, 10:90])
    assert slow.abs().max() < 0.05


def test_imu_does_not_alias() -> None:
    time = np.arange(1000) / 500
    fast = np.stack([np.sin(2 * np.pi * 190 * time)] * 6, axis=1)
    got = get_modality("imu", steps=40, rate_hz=20).load({"data": fast, "rate_hz": 500})
    assert got[:, 5:35].abs().max() < 0.05


def test_imu_standardise() -> None:
    x = traces() * 9 + 4
    imu = get_modality("imu", steps=100, rate_hz=50, standardise=True).load(x)
    assert imu.mean(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(imu.std(dim=1, unbiased=False), torch.ones(6))
    known = get_modality(
        "imu", steps=100, rate_hz=50, channel_mean=[4.0] * 6, channel_std=[9.0] * 6
    )
    torch.testing.assert_close(known.load(x), torch.from_numpy(traces().T).float())


# -- fMRI ----


def test_fmri_layout() -> None:
    """Token t, channel c is output c * tokens + t (spec section 1.2)."""
    torch.manual_seed(0)
    tokenizer = FmriTokenizer(width=5, voxels=7, tokens=3)
    signal = torch.randn(2, 1, 7)
    flat, tokens = tokenizer.linear(signal[:, 0]), tokenizer(signal)
    for t, c in itertools.product(range(3), range(5)):
        torch.testing.assert_close(tokens[:, t, c], flat[:, c * 3 + t])


def test_fmri_repeats_are_averaged() -> None:
    fmri = get_modality("fmri", voxels=60)
    x = np.random.default_rng(0).normal(size=(3, 60)).astype(np.float16)
    expected = torch.from_numpy(x.astype(np.float32).mean(axis=0))
    torch.testing.assert_close(fmri.load(x)[0], expected)
    torch.testing.assert_close(fmri.load(x[0])[0], fmri.load(x[0].reshape(4, 5, 3))[0])


@pytest.mark.parametrize(("count", "done"), [(40, "padded"), (80, "cropped")])
def test_fmri_of_another_length(count: int, done: str) -> None:
    x = np.arange(1, count + 1, dtype=np.float32)
    with pytest.warns(UserWarning, match=f"{count} voxels are {done}"):
        signal = get_modality("fmri", voxels=60).load(x)
    assert signal[0, : min(count, 60)].tolist() == x[:60].tolist()
    assert signal[0, count:].abs().sum() == 0


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
def test_nifti_with_a_mask(suffix: str, kind: str, tmp_path: Path) -> None:
    import nibabel

    rng = np.random.default_rng(0)
    volume = rng.normal(size=(4, 5, 6, 2)).astype(np.float32)
    mask = rng.random((4, 5, 6)) < 0.5
    volume[~mask] = np.nan  # outside the mask anything goes
    image = getattr(nibabel, kind)
    image(volume, np.eye(4)).to_filename(tmp_path / f"a{suffix}")
    image(mask.astype(np.uint8), np.eye(4)).to_filename(tmp_path / f"mask{suffix}")
    np.save(tmp_path / "mask.npy", mask)
    count = int(mask.sum())
    expected = torch.from_numpy(volume[mask].mean(axis=1))
    path = str(tmp_path / f"a{suffix}")
    for where in (str(tmp_path / f"mask{suffix}"), str(tmp_path / "mask.npy")):
        torch.testing.assert_close(
            get_modality("fmri", voxels=count, mask=where).load(path)[0], expected
        )
        source = {"data": path, "mask": where}
        torch.testing.assert_close(get_modality("fmri", voxels=count).load(source)[0], expected)


def test_live_voxels_of_the_starter_pack() -> None:
    live = get_modality("fmri", voxels=530, mask="nonzero")
    whole = get_modality("fmri", voxels=800)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in shard("fmri"):
            inside = live.load(source)[0]
            every = whole.load(source)[0]
            assert torch.equal(inside, every[every != 0])
    with pytest.raises(BadInput, match="529 voxels that are not zero"):
        get_modality("fmri", voxels=529, mask="nonzero").load(next(shard("fmri")))
