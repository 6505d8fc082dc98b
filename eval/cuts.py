"""Media that are not simply a file: a stretch of a longer recording, a file without a suffix.

Shape legend: T frames or samples, H and W of a frame, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onellm.errors import BadInput
from onellm.source import Blob, Source

FRAMES_PER_SECOND = 4.0
"""A cut-out video keeps this many frames a second at most; models look at a few per clip."""
SHORT_SIDE = 448
"""Frames of a cut-out video are shrunk to this many pixels on their short side at most."""


@dataclass(frozen=True)
class Named:
    """A file whose name does not say what it is.

    Args:
        file: the file.
        suffix: what to read it as.
    """

    file: Path
    suffix: str

    def make(self) -> Source:
        """The file in memory under a name with the suffix."""
        try:
            return Blob(f"{self.file}{self.suffix}", self.file.read_bytes())
        except OSError as error:
            found = error.strerror or str(error)
            raise BadInput(self.file, expected="a file", found=found) from error


@dataclass(frozen=True)
class Cut:
    """A stretch of a file, made into a source when it is needed.

    Args:
        what: ``frames`` of a video file, or ``samples`` of a ``.npy`` array (T, C).
        file: the whole recording.
        begin: beginning in seconds.
        end: end in seconds.
        clock: for ``samples``: a ``.npy`` array (T,) with the time of each in milliseconds.
    """

    what: Literal["frames", "samples"]
    file: Path
    begin: float
    end: float
    clock: Path | None = None

    def make(self) -> Source:
        """The stretch as a source with its rate.

        Raises:
            BadInput: an unreadable file, or a stretch outside the recording.
        """
        if not self.begin < self.end:
            raise BadInput(self, expected="a stretch of time", found="an end before its beginning")
        return self._frames() if self.what == "frames" else self._samples()

    def lack(self) -> str:
        """Why the stretch cannot be had, as far as a look at the clock tells; else nothing."""
        if self.clock is None:
            return ""
        try:
            self.make()
        except BadInput as error:
            return f"{self} ({error.found})"
        return ""

    def __str__(self) -> str:
        return f"{self.file}, {self.begin:g} to {self.end:g} s"

    def _samples(self) -> Source:
        import numpy as np

        if self.clock is None:
            raise BadInput(self, expected="a clock to cut by", found="none")
        x_TC, times_T = (_array(path) for path in (self.file, self.clock))
        if times_T.ndim != 1 or len(times_T) != len(x_TC):
            expected = f"{len(x_TC)} times, one per sample"
            raise BadInput(self.clock, expected=expected, found=f"shape {times_T.shape}")
        seconds_T = times_T / 1000.0
        first, last = np.searchsorted(seconds_T, [self.begin, self.end])
        taken_T = seconds_T[first:last]
        if len(taken_T) < 2 or taken_T[-1] <= taken_T[0]:
            whole = f"{seconds_T[0]:g} to {seconds_T[-1]:g} s" if len(seconds_T) else "nothing"
            raise BadInput(self, expected="samples in that stretch", found=f"a clock of {whole}")
        rate = (len(taken_T) - 1) / float(taken_T[-1] - taken_T[0])
        return {"data": np.asarray(x_TC[first:last]), "rate_hz": rate}

    def _frames(self) -> Source:
        import numpy as np

        frames = list(self._decoded())
        if not frames:
            raise BadInput(self, expected="frames in that stretch", found="none")
        seconds = max(self.end - self.begin, 1 / FRAMES_PER_SECOND)
        rate = min(FRAMES_PER_SECOND, max(len(frames) / seconds, 0.1))
        return {"data": np.stack(frames), "rate_hz": rate}

    def _decoded(self) -> Iterator[Any]:
        """Frames (H, W, 3) uint8 of the stretch, thinned out and shrunk."""
        import av

        if not self.file.is_file():
            raise BadInput(self.file, expected="a video", found="no such file")
        try:
            with av.open(str(self.file)) as container:
                stream = container.streams.video[0]
                if stream.time_base is not None:
                    container.seek(int(max(self.begin, 0) / stream.time_base), stream=stream)
                due = self.begin
                for frame in container.decode(stream):
                    if frame.time is None or frame.time >= self.end:
                        break
                    if frame.time >= due:
                        due = max(due, frame.time - 1 / FRAMES_PER_SECOND) + 1 / FRAMES_PER_SECOND
                        yield _shrunk(frame)
        except (av.error.FFmpegError, IndexError, OSError) as error:
            raise BadInput(self.file, expected="a video", found=f"{error}") from error


def _shrunk(frame: Any) -> Any:
    factor = min(1.0, SHORT_SIDE / min(frame.width, frame.height))
    width, height = round(frame.width * factor), round(frame.height * factor)
    return frame.to_ndarray(width=width, height=height, format="rgb24")


def _array(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(path, expected="a .npy array", found=str(error)) from error
