"""Waveforms: the beginning of a sound file or array as mono samples at 16 kHz."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from onellm.errors import BadInput
from onellm.source import Source, is_file, open_file, source_name
from onellm.tokenizers.arrays import as_array, check_finite
from onellm.tokenizers.decoding import decoding, rate_fact, unwrap

EXPECTED = "a sound recording"
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
_MAX_CHANNELS = 64
# Writers miscount their own header or a padding byte by this much.
_SLACK_BYTES = 8


def read_wave(
    source: Source, *, rate_hz: int, seconds: float, max_megabytes: float
) -> NDArray[np.float32]:
    """Read the first seconds of a recording, averaged over its channels and resampled.

    Args:
        source: sound file, or an array of samples (n,), (channels, n) or (n, channels) whose
            sampling rate is the fact ``rate_hz`` (``rate_hz`` without one). Integers are scaled
            to -1..1 by their type's range.
        rate_hz: sampling rate of the result in Hz.
        seconds: how much of the recording is needed; later samples are not even decoded.
        max_megabytes: refuse larger files (10^6 bytes).

    Returns:
        Samples (n,), float32, nominally -1..1.

    Raises:
        BadInput: no recording, truncated, or NaN.
    """
    data, facts = unwrap(source)
    name = source_name(data)
    if is_file(data):
        with open_file(
            data, suffixes=SUFFIXES, expected=EXPECTED, max_megabytes=max_megabytes
        ) as file:
            wave_NC, rate = _decode(file, name, seconds)
    else:
        rate = rate_fact(data, facts, "rate_hz", low=100, high=1e6) or float(rate_hz)
        wave_NC = _samples(data, name)[: math.ceil(seconds * rate)]
    check_finite(wave_NC, name, EXPECTED)
    mono: NDArray[np.float32] = wave_NC.mean(axis=1, dtype=np.float32)
    if rate == rate_hz:
        return mono
    with decoding(name, EXPECTED):
        return _resample(mono, rate, rate_hz)


def _resample(mono: NDArray[np.float32], rate: float, wanted: int) -> NDArray[np.float32]:
    """Resample as :func:`librosa.resample` does, by its default engine where that is installed.

    Calling the engine directly saves the seconds that librosa's own import takes to compile.
    """
    try:
        import soxr  # type: ignore[import-untyped]
    except ImportError:
        import librosa

        return np.asarray(librosa.resample(mono, orig_sr=rate, target_sr=wanted), np.float32)
    return np.asarray(soxr.resample(mono, rate, wanted, quality="HQ"), np.float32)


def _decode(file: BinaryIO, name: str, seconds: float) -> tuple[NDArray[np.float32], float]:
    """Decode the first seconds of a sound file: samples (n, channels) and rate in Hz."""
    import soundfile

    _check_whole(file, name)
    with decoding(name, EXPECTED), soundfile.SoundFile(file) as sound:
        rate, promised = sound.samplerate, sound.frames
        if sound.channels > _MAX_CHANNELS or not 100 <= rate <= 1_000_000:
            found = f"{sound.channels} channels at {rate} Hz"
            raise BadInput(name, expected=EXPECTED, found=found)
        wanted = min(promised, math.ceil(seconds * rate))
        wave_NC = sound.read(wanted, dtype="float32", always_2d=True)
        # The length of an MP3 file is only estimated from its header.
        least = 1 if sound.format == "MP3" else wanted
    if len(wave_NC) < max(least, 1):
        found = f"{len(wave_NC)} of {wanted} samples: it is cut off"
        raise BadInput(name, expected=EXPECTED, found=found)
    return wave_NC, float(rate)


def _check_whole(file: BinaryIO, name: str) -> None:
    """Find truncation that the decoder hides: it would just return what is there."""
    data = file.read()
    file.seek(0)
    promised = len(data)
    if data.startswith(b"RIFF"):
        size = int.from_bytes(data[4:8], "little") + 8
        # Streams of unknown length carry 0 or all ones.
        promised = size if 8 < size < 0xFFFFFF00 else promised
    elif data.startswith(b"OggS"):
        last = data.rfind(b"OggS")
        segments = data[last + 27 : last + 27 + data[min(last + 26, len(data) - 1)]]
        promised = last + 27 + len(segments) + sum(segments)
    if promised > len(data) + _SLACK_BYTES:
        found = f"{len(data)} of {promised} bytes: it is cut off"
        raise BadInput(name, expected=EXPECTED, found=found)


def _samples(data: Source, name: str) -> NDArray[np.float32]:
    """Samples (n, channels) of an array, integers scaled to -1..1."""
    array = as_array(data, expected=EXPECTED)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        shapes = "(n,), (channels, n) or (n, channels)"
        raise BadInput(name, expected=f"samples of shape {shapes}", found=f"{array.shape}")
    if array.shape[0] < array.shape[1]:
        array = array.T
    if array.shape[1] > _MAX_CHANNELS:
        found = f"shape {array.shape}"
        raise BadInput(name, expected=f"at most {_MAX_CHANNELS} channels", found=found)
    samples: NDArray[np.float32] = array.astype(np.float32)
    if array.dtype.kind in "iu":
        half = float(2 ** (8 * array.dtype.itemsize - 1))
        # Unsigned samples are centred on half their range.
        samples = samples / half - (1 if array.dtype.kind == "u" else 0)
    return samples
