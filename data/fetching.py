"""Fetching one file from an address: by which tool, what its failures mean, and trying again."""

from __future__ import annotations

import logging
import os
import re
import selectors
import shlex
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Any

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from onellm.config import StrictModel
from onellm.errors import BadInput

FETCHABLE = "a file that can be fetched"
_BLOCK = 1 << 20
_LONGEST_PAUSE = 60.0  # seconds
_CURLED = ("http://", "https://", "ftps://", "sftp://", "scp://")

_log = logging.getLogger("onellm.data")


class FetchConfig(StrictModel):
    """How often, and with what patience, a shard is asked for.

    Attributes:
        tries: in all, before it counts as lost. What another try cannot mend (no such file, no
            right to it, no such command) has one.
        pause_seconds: between the first two tries; each further pause is twice as long, up to a
            minute.
        stall_seconds: a transfer that brings nothing for so long has failed.
    """

    tries: PositiveInt = 6
    pause_seconds: NonNegativeFloat = 2.0
    stall_seconds: PositiveFloat = 60.0


class OutOfReach(BadInput):
    """A file that could not be fetched now, and perhaps can be later."""


class _Failure(Exception):
    """One try that failed: the reason in words, and whether another one would fail, too."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


def fetch(
    place: str,
    file: Path,
    config: FetchConfig | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write what lies under an address to a file; each further try is told of in the log.

    Args:
        place: ``https://…``, ``s3://…``, ``gs://…``, ``file://…``, ``pipe:COMMAND``, or another
            scheme that webdataset knows.
        file: is written over; after an error it may hold a part.
        config: tries and patience.
        sleep: waits for so many seconds.

    Raises:
        BadInput: it cannot be fetched; :class:`OutOfReach` after all tries.
        OSError: the file cannot be written.
    """
    config = config or FetchConfig()
    pause = config.pause_seconds
    for number in range(1, config.tries + 1):
        try:
            _once(place, file, config.stall_seconds)
            return
        except _Failure as failure:
            if failure.final:
                raise BadInput(place, expected=FETCHABLE, found=f"{failure}") from failure
            if number == config.tries:
                tries = f", {number} times" if number > 1 else ""
                raise OutOfReach(place, expected=FETCHABLE, found=f"{failure}{tries}") from failure
            _log.warning(
                *("%s: %s; trying again in %.3g s (try %d of %d)", place, failure, pause),
                *(number + 1, config.tries),
            )
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _once(place: str, file: Path, stall_seconds: float) -> None:
    from webdataset.gopen import gopen_schemes, rewrite_url

    place = rewrite_url(place)
    with file.open("wb") as out:
        if place.startswith("file:"):
            _copy(Path(re.sub("^file:(//)?", "", place)), out)
        elif place.startswith("pipe:"):
            _run(place.removeprefix("pipe:"), out, stall_seconds)
        elif place.startswith(_CURLED):
            # webdataset's own call repeats itself for a minute and says neither why nor the status.
            own = ["--fail", "--silent", "--show-error", "--location", "--connect-timeout", "30"]
            _run(shlex.join(["curl", *own, place]), out, stall_seconds)
        elif place.startswith("s3://") and "s3" not in gopen_schemes:
            _run(shlex.join(["aws", "s3", "cp", place, "-"]), out, stall_seconds)
        elif place.startswith("gs://"):
            _run(shlex.join(["gsutil", "cat", place]), out, stall_seconds)
        else:
            _copy_stream(place, out)
        if not out.tell():
            raise _Failure("nothing in it", final=True)


def _copy(source: Path, out: IO[bytes]) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        final = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
        raise _Failure(f"{error.strerror or error}".lower(), final=final) from error
    with file:
        while block := _block_of(file):
            out.write(block)


def _block_of(file: Any) -> bytes:
    try:
        return bytes(file.read(_BLOCK))
    except OSError as error:  # a network file system that was away, or a tool of webdataset's
        code = re.search(r"exit (\d+)", str(error))
        reason = f"its command ended with code {code[1]}" if code else f"{error}"
        raise _Failure(reason, final=False) from error


def _copy_stream(place: str, out: IO[bytes]) -> None:
    """Of any other scheme, as webdataset fetches it."""
    from webdataset.gopen import gopen

    try:
        stream = gopen(place, "rb", bufsize=_BLOCK)
    except Exception as error:  # the tools' own kinds
        raise _Failure(f"{error}", final=isinstance(error, ValueError)) from error
    with stream:
        while block := _block_of(stream):
            out.write(block)


# -- commands -----------------------------------------------------------------------------------


def _run(command: str, out: IO[bytes], stall_seconds: float) -> None:
    """Write what a command prints; end it when nothing comes any more."""
    with tempfile.TemporaryFile() as said:
        # Its own session, so that the shell and what it has started can be ended together.
        process = Popen(
            command,
            shell=True,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=said,
            bufsize=0,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            _pour(process.stdout, out, stall_seconds)
            code = process.wait()
        finally:
            _end(process)
        said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
        words = said.read().decode("utf-8", "replace").strip()
    if code not in (0, 141):  # 141: the last of a pipe had enough
        raise _meaning(command.split()[0] if command.split() else "", code, words)


def _pour(stream: IO[bytes], out: IO[bytes], stall_seconds: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(stall_seconds):
                raise _Failure(f"nothing came for {stall_seconds:g} s", final=False)
            block = os.read(stream.fileno(), _BLOCK)
            if not block:
                return
            out.write(block)


def _end(process: Popen[bytes]) -> None:
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


_CURL = {  # exit code → reason, and whether it stays
    1: ("curl cannot fetch such an address", True),
    3: ("no address", True),
    5: ("no such proxy", False),
    6: ("no such host", False),
    7: ("no connection", False),
    9: ("no right to it", True),
    18: ("it was cut off", False),
    28: ("the time ran out", False),
    56: ("the connection broke off", False),
    60: ("the server's certificate is not trusted", True),
    67: ("no right to it", True),
    78: ("no such file", True),
    127: ("curl is not installed", True),
}

_STAYS = re.compile(  # as the cloud's tools and curl in a pipe put it
    r"\b(?:400|401|403|404|410)\b|NoSuchKey|NoSuchBucket|AccessDenied|Forbidden|Not ?Found"
    r"|No URLs matched|[Uu]nable to locate credentials|command not found"
)


def _meaning(tool: str, code: int, words: str) -> _Failure:
    """What the end of a command means.

    Args:
        tool: its first word.
        code: its exit code.
        words: the end of what it said.
    """
    last = words.splitlines()[-1].strip()[:200] if words else ""
    if tool == "curl" and code == 22:
        status = re.search(r"error: (\d+)", words)
        number = int(status[1]) if status else 0
        passing = number >= 500 or number in (408, 425, 429)
        said = {404: ": no such file", 401: ": no right to it", 403: ": no right to it"}
        return _Failure(f"the server answered {number}{said.get(number, '')}", final=not passing)
    if tool == "curl" and code in _CURL:
        reason, final = _CURL[code]
        return _Failure(reason, final=final)
    final = code in (126, 127) or bool(_STAYS.search(words))
    detail = f" ({last})" if last else ""
    return _Failure(f"its command ended with code {code}{detail}", final=final)
