"""The filter banks against two independent implementations of Kaldi's.

``golden/fbank.npz`` holds four rows of the features of :func:`_wave` (its mean subtracted):

* ``torchaudio_128``: ``torchaudio.compliance.kaldi.fbank`` of torchaudio 2.11 with the published
  arguments (htk_compat, no energy, hanning, 128 bins, no dither, 10 ms);
* ``kaldi_40``: the PyPI package kaldi-native-fbank 1.23 with the same settings and 40 bins (it
  refuses 128, because the narrowest of these hold no point of a 512-point transform).
"""

from pathlib import Path

import numpy as np
import pytest

from onellm.tokenizers import fbank
from onellm.tokenizers.audio import Audio

GOLDEN = Path(__file__).parent / "golden" / "fbank.npz"


def _wave() -> np.ndarray:
    """Half a second: a tone, a rising chirp and a rough texture."""
    n = np.arange(8000)
    t = n / 16_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    chirp = 0.25 * np.sin(2 * np.pi * (1000 * t + 3000 * t**2))
    rough = 0.05 * np.cos(0.37 * (n**2 % 1009))
    return (tone + chirp + rough).astype(np.float32)


@pytest.mark.parametrize(("key", "bins"), [("torchaudio_128", 128), ("kaldi_40", 40)])
def test_golden(key: str, bins: int) -> None:
    wave = _wave()
    got = fbank.log_mel(wave - wave.mean(), bins)
    assert got.shape == (48, bins)
    with np.load(GOLDEN, allow_pickle=False) as golden:
        # They compute in float32, we in float64; the logarithm widens that near the floor.
        np.testing.assert_allclose(got[golden["rows"]], golden[key], atol=3e-4)


def test_constant_makes_no_difference() -> None:
    wave = _wave()
    np.testing.assert_allclose(fbank.log_mel(wave), fbank.log_mel(wave + 0.25), atol=1e-3)


def test_silence_is_the_floor() -> None:
    assert np.allclose(fbank.log_mel(np.zeros(800)), -15.942385)


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16_000, 98)])
def test_only_whole_windows(samples: int, frames: int) -> None:
    assert len(fbank.log_mel(np.zeros(samples))) == frames


def test_less_than_a_window() -> None:
    with pytest.raises(ValueError, match="399 samples"):
        fbank.log_mel(np.zeros(399))


def test_a_tone_lights_its_band() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(1600) / 16_000)
    mel = 1127 * np.log1p(np.array([20, 1000, 8000]) / 700)
    band = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 129 - 1
    assert abs(fbank.log_mel(tone).mean(axis=0).argmax() - band) <= 1


def test_signal_is_the_published_normalisation() -> None:
    wave = _wave()
    signal = Audio(frames=64).load({"data": wave, "rate_hz": 16_000})
    mel = fbank.log_mel(wave - wave.mean())
    expected = (mel.T + 4.2677393) / (2 * 4.5689974)
    np.testing.assert_allclose(signal[0, :, :48].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(signal[0, :, 48:].numpy(), 0.4670, atol=1e-4)
