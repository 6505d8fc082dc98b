"""Log-mel filter banks as Kaldi computes them, in NumPy.

Settings are the published ones (spec section 1.3): Hann window of 25 ms every 10 ms, 512-point
transform, 20 Hz to 8 kHz, pre-emphasis 0.97, the mean of each window removed, no energy, no
dither, and only windows that lie wholly inside the recording. The Hann window is Kaldi's
``hanning`` (symmetric), not its default ``povey``; samples are in -1..1, not in 16-bit units.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
WINDOW = 400  # samples: 25 ms
SHIFT = 160  # samples: 10 ms
_TRANSFORM = 512
_LOW_HZ = 20.0
_PREEMPHASIS = 0.97
# Kaldi's floor under the energies: the float32 machine epsilon.
_FLOOR = float(np.finfo(np.float32).eps)

Floats = NDArray[np.float32]


def log_mel(wave: NDArray[np.floating], bins: int = 128) -> Floats:
    """Log energies of a waveform in mel bands.

    Args:
        wave: samples (n,) at 16 kHz in -1..1, at least 400 of them.
        bins: number of mel bands.

    Returns:
        (frames, bins) float32, natural logarithm; frames = 1 + (n - 400) // 160.

    Raises:
        ValueError: fewer samples than one window.

    Example:
        >>> log_mel(np.zeros(16_000)).shape
        (98, 128)
    """
    if len(wave) < WINDOW:
        raise ValueError(f"{len(wave)} samples are less than one window of {WINDOW}")
    windows = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), WINDOW)[::SHIFT]
    windows = windows - windows.mean(axis=1, keepdims=True)
    # Kaldi's pre-emphasis repeats the first sample of each window as its own predecessor.
    before = np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
    shaped = (windows - _PREEMPHASIS * before) * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(shaped, _TRANSFORM)) ** 2
    # The bin at half the sampling rate belongs to no band.
    energies = power[:, : _TRANSFORM // 2] @ mel_bands(bins).T
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


@cache
def mel_bands(bins: int) -> NDArray[np.float64]:
    """Triangular filters, evenly spaced and evenly sloped on Kaldi's mel scale.

    Args:
        bins: number of bands between 20 Hz and 8 kHz.

    Returns:
        Weights (bins, 256) of the lower half of a 512-point power spectrum, 0..1.
    """
    edges = np.linspace(_mel(_LOW_HZ), _mel(RATE_HZ / 2), bins + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    mel = _mel(np.arange(_TRANSFORM // 2) * RATE_HZ / _TRANSFORM)
    rise, fall = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return np.maximum(0.0, np.minimum(rise, fall))


def _mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return 1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0)
