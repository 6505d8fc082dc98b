"""Files made to do harm, and damage that only one modality can have."""

from __future__ import annotations

import gzip
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import POINTS, built_in, refused, small, video_file

from onellm.errors import BadInput
from onellm.registry import get_modality
from onellm.source import Blob, Source

# -- hostile files ------------------------------------------------------------------------------

READS_NPY = [name for name in built_in() if ".npy" in get_modality(name).suffixes]


def npy_header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


@pytest.mark.parametrize("name", READS_NPY)
@pytest.mark.parametrize(
    "shape", ["(1000000000000, 6)", "(99999, 99999, 99999)", "(-1, 6)", "(6, True)", "'x'", "(0,)"]
)
def test_array_header_that_lies(name: str, shape: str) -> None:
    refused(small(name), Blob("lie.npy", npy_header(shape) + bytes(64)))


class Bomb:
    """Unpickling it would end the test run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.exit, ("a pickle was executed",)


@pytest.mark.parametrize("name", READS_NPY)
def test_pickles_are_never_opened(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    error = refused(small(name), tmp_path / "objects.npy")
    assert "never unpickled" in error.hint
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Bomb()))
    refused(small(name), tmp_path / "pickle.npy")


def test_pickles_in_archives_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", xyz=np.array([Bomb()], dtype=object))
    assert "never unpickled" in refused(small("point"), tmp_path / "a.npz").hint


def test_archive_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xyz.npy", npy_header("(1000000, 3)") + bytes(12_000_000))
    error = refused(small("point", max_megabytes=1), tmp_path / "a.npz")
    assert error.found == "12.0 MB"


def test_archive_without_positions(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rgb=np.zeros((9, 3)), other=np.zeros(4))
    assert refused(small("point"), tmp_path / "a.npz").found == "rgb, other"


def test_gzip_bomb(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(3_000_000)))
    error = refused(small("fmri", max_megabytes=1), tmp_path / "a.nii.gz")
    assert "unpacked" in error.found


def test_nifti_header_that_lies(tmp_path: Path) -> None:
    import nibabel

    nibabel.Nifti1Image(np.zeros((4, 5, 3), np.float32), np.eye(4)).to_filename(tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[42:48] = struct.pack("<3h", 32_000, 32_000, 32_000)
    refused(small("fmri"), Blob("lie.nii", bytes(data)))


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("name", ["image", "depth", "normal"])
@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])
def test_picture_bomb(name: str, size: tuple[int, int]) -> None:
    refused(small(name), Blob("bomb.png", png_of_size(*size)))


@pytest.mark.parametrize("name", ["image", "depth", "normal"])
def test_oblong_picture(name: str) -> None:
    assert "50-fold" in refused(small(name), Blob("line.png", png_of_size(9_000, 3))).expected


def test_video_frames_too_large(tmp_path: Path) -> None:
    error = refused(small("video", max_megapixels=0.0005), video_file("a.mp4", 2)(tmp_path))
    assert error.found == "32 x 32 pixels"


def test_playlist_is_not_followed(tmp_path: Path) -> None:
    video = video_file("a.mp4", 4)(tmp_path)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{video}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp4").write_text(playlist)
    refused(small("video"), tmp_path / "list.mp4")


def test_sound_in_a_video_file(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "without a video stream" in refused(small("video"), tmp_path / "a.mp4").found


# -- modality by modality -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".flac", ".ogg"])
def test_truncated_sound(suffix: str, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(tmp_path / f"a{suffix}", samples, 16_000)
    data = (tmp_path / f"a{suffix}").read_bytes()
    refused(get_modality("audio", frames=98), Blob(f"a{suffix}", data[: len(data) * 6 // 10]))


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "fast", 1e9])
def test_impossible_rates(rate: object) -> None:
    for name in ("audio", "imu"):
        with pytest.raises(BadInput, match="rate_hz"):
            small(name).load({"data": np.ones((500, 6)), "rate_hz": rate})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,2,3,4,5\n" * 20, "5 column"),
        ("1,2,3,4,5,6\n" * 20 + "1,2\n", "2 in row 21"),
        ("1,2,3,4,5,x\n" * 20, "cannot be decoded"),
        ("1,2,3,4,5,nan\n" * 20, "NaN"),
        ("1,2,3,4,5,\n" * 20, "cannot be decoded"),
        ("ax,ay,az,gx,gy,gz\n", "no rows"),
        ("time,a,b,c,d,e,f\n" + "1,1,2,3,4,5,6\n" * 20, "do not"),
    ],
)
def test_imu_tables(text: str, found: str) -> None:
    assert found in refused(small("imu"), Blob("a.csv", text.encode())).found


@pytest.mark.parametrize("shape", [(6, 6), (50, 5), (50,), (2, 50, 6)])
def test_imu_shapes(shape: tuple[int, ...]) -> None:
    refused(small("imu"), np.ones(shape))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("image", np.full((8, 8, 3), 300)),
        ("image", np.full((8, 8, 3), -0.5)),
        ("image", np.zeros((8, 8, 5))),
        ("image", np.zeros(64)),
        ("video", np.zeros((4, 8, 8))),
        ("depth", np.full((8, 8), -1.0)),
        ("depth", np.zeros((8, 8))),
        ("depth", np.zeros((8, 8, 3))),
        ("depth", (np.zeros((8, 8, 3)),)),
        ("point", np.full((9, 3), 0.5)),
        ("point", np.ones((9, 4))),
        ("point", np.concatenate([np.eye(3), -np.ones((3, 3))], axis=1)),
        ("point", {"data": POINTS[:, :3], "rgb": POINTS[:9, 3:]}),
        ("audio", np.zeros((100, 100))),
        ("fmri", {"data": np.ones((5, 6)), "mask": np.ones((6, 6))}),
        ("fmri", {"data": np.ones((5, 6)), "mask": np.zeros((5, 6))}),
    ],
)
def test_values_and_shapes(name: str, source: Source) -> None:
    with pytest.raises(BadInput):
        small(name).load(source)


def test_mesh_without_faces_or_points() -> None:
    obj = b"# a comment\no nothing\n"
    refused(small("point"), Blob("a.obj", obj))
    flat = b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"
    assert refused(small("point"), Blob("flat.obj", flat)).found == "an area of 0"


def test_mesh_header_that_lies() -> None:
    header = b"ply\nformat binary_little_endian 1.0\nelement vertex 999999999999\n"
    header += b"property float x\nproperty float y\nproperty float z\nend_header\n"
    refused(small("point"), Blob("lie.ply", header + bytes(120)))


def test_errors_survive_worker_processes() -> None:
    error = refused(small("image"), Blob("a.jpg", b"text"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
