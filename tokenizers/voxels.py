"""Voxels of a brain image: reading NumPy and NIfTI volumes and picking the voxels of a mask."""

from __future__ import annotations

import gzip
import io
import math
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from onellm.errors import BadInput
from onellm.source import Source, is_file, open_file, source_name, suffix_of
from onellm.tokenizers.arrays import as_array, read_array
from onellm.tokenizers.decoding import decoding

SUFFIXES = (".npy", ".nii", ".nii.gz")
_NIFTI = (".nii", ".nii.gz")
_NIFTI1_HEADER, _NIFTI2_HEADER = 348, 540

Numbers = NDArray[np.generic]


def read_volume(source: Source, *, expected: str, max_megabytes: float) -> Numbers:
    """Read a volume (or series of volumes) of numbers.

    Args:
        source: ``.npy``, ``.nii`` or ``.nii.gz`` file, or an array.
        expected: what it should hold, for the error message.
        max_megabytes: limit for the file and for what it unpacks to (10^6 bytes).

    Returns:
        An array of any shape; NIfTI files give (X, Y, Z) or (X, Y, Z, time), scaled as their
        header says.

    Raises:
        BadInput: unreadable, truncated, or too large.
    """
    if not (is_file(source) and suffix_of(source) in _NIFTI):
        return read_array(source, expected=expected, max_megabytes=max_megabytes, suffixes=SUFFIXES)
    name = source_name(source)
    with open_file(source, suffixes=_NIFTI, expected=expected, max_megabytes=max_megabytes) as file:
        data = _unpacked(file, name, expected, max_megabytes)
    import nibabel

    second = int.from_bytes(data[:4], "little") == _NIFTI2_HEADER or (
        int.from_bytes(data[:4], "big") == _NIFTI2_HEADER
    )
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    with decoding(name, f"{expected} in NIfTI format"):
        if len(data) < (_NIFTI2_HEADER if second else _NIFTI1_HEADER):
            raise ValueError(f"{len(data)} bytes are less than a header")
        image = kind.from_bytes(data)
        shape, item = image.shape, image.get_data_dtype().itemsize
        # Compare before loading: a header may claim any shape.
        if math.prod(shape) * item > len(data):
            raise ValueError(f"{len(data)} bytes cannot hold shape {shape}: it is cut off")
        return as_array(np.asarray(image.dataobj), expected=expected)


def _unpacked(file: BinaryIO, name: str, expected: str, max_megabytes: float) -> bytes:
    """Bytes of a file, unzipped when they are gzip's, and never more than the limit."""
    data = file.read()
    if not data.startswith(b"\x1f\x8b"):
        return data
    limit = int(max_megabytes * 1e6)
    with decoding(name, f"{expected} in NIfTI format"):
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(data)).read(limit + 1)
    if len(unpacked) > limit:
        found = f"more than {max_megabytes:g} MB unpacked"
        raise BadInput(name, expected=f"{expected} of at most {max_megabytes:g} MB", found=found)
    return unpacked


def pick_voxels(volume: Numbers, mask: Numbers | None, name: str) -> NDArray[np.float32]:
    """Voxels of a volume as one vector per repeat.

    Args:
        volume: with a mask, an array whose shape begins with the mask's, any further axes are
            repeats. Without one, (repeats, voxels) if it has two axes, else one volume of any
            shape, a four-dimensional one being (X, Y, Z, repeats).
        mask: non-zero where a voxel counts.
        name: the file, for the error message.

    Returns:
        (repeats, voxels), float32; voxels in the order of the array's axes.

    Raises:
        BadInput: a mask of another shape, or one that leaves nothing.
    """
    if mask is None:
        if volume.ndim == 2:
            return volume.astype(np.float32)
        if volume.ndim == 4:
            return volume.reshape(-1, volume.shape[3]).T.astype(np.float32)
        return volume.reshape(1, -1).astype(np.float32)
    if volume.shape[: mask.ndim] != mask.shape and volume.size == mask.size:
        mask = mask.reshape(volume.shape)  # axes of length one may differ
    if volume.shape[: mask.ndim] != mask.shape:
        found = f"shape {volume.shape}"
        raise BadInput(name, expected=f"a volume of the mask's shape {mask.shape}", found=found)
    chosen = volume[mask != 0]
    if chosen.shape[0] == 0:
        raise BadInput(name, expected="a mask that leaves voxels", found="nothing but zeros")
    repeats: NDArray[np.float32] = chosen.reshape(chosen.shape[0], -1).T.astype(np.float32)
    return repeats
