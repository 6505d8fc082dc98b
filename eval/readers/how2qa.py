"""How2QA (Li et al., EMNLP 2020) in its two releases: four options about a clip."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json, read_jsonl, read_table

_CLIP = re.compile(r"(.+)_(\d+)_(\d+)")
_TIMES = re.compile(r"\[?\s*([\d.]+)\s*:\s*([\d.]+)\s*\]?")
_CLIP_SECONDS = 60
_COLUMNS = ("video", "time", "wrong1", "wrong2", "wrong3", "question", "right")


def read(files: Mapping[str, Path], seed: int = 0) -> Iterator[Entry]:
    """Yield questions of the first release (a table) or of VALUE's (JSON lines).

    In the table the right answer is always the last one, and a model that always says one letter
    would get all or nothing: its options are shuffled by the seed and the question's place.

    Args:
        files: ``questions``; ``videos``, VALUE's mapping from its names to those of clips, may be
            left out.
        seed: of the shuffling.
    """
    if files["questions"].suffix == ".csv":
        yield from _table(files["questions"], seed)
    else:
        places = read_json(files["videos"]) if "videos" in files else {}
        yield from _lines(files["questions"], places)


def _table(path: Path, seed: int) -> Iterator[Entry]:
    rows = list(read_table(path, _COLUMNS, header=False))
    if rows and not _TIMES.fullmatch(rows[0]["time"].strip()):
        rows = rows[1:]  # names of columns, which some copies have
    for number, row in enumerate(rows):
        times = _TIMES.fullmatch(row["time"].strip())
        if times is None:
            where, found = f"{path}, question {number}", repr(row["time"])
            raise BadInput(where, expected="a stretch such as [61.5:70]", found=found)
        options = [row["wrong1"], row["wrong2"], row["wrong3"], row["right"]]
        order = list(range(len(options)))
        random.Random(f"how2qa/{seed}/{number}").shuffle(order)
        place = clip_of(row["video"], float(times[1]), float(times[2]))
        shuffled = [options[number] for number in order]
        yield _entry(str(number), row["question"], place, shuffled, order.index(3))


def _lines(path: Path, places: Mapping[str, str]) -> Iterator[Entry]:
    for record in read_jsonl(path):
        begin, _, end = str(record["ts"]).partition("-")
        options = [record[f"a{number}"] for number in range(4)]
        video = places.get(record["vid_name"], record["vid_name"])
        place = {"video": video, "begin": float(begin), "end": float(end)}
        yield _entry(str(record["qid"]), record["q"], place, options, int(record["answer_idx"]))


def clip_of(video: str, begin: float, end: float) -> dict[str, Any]:
    """Where a stretch lies: in a clip of a minute, and in the whole video.

    Args:
        video: a video's id, whose clip is the one that the stretch begins in; or the name of a
            clip, ``<id>_60_120``.
        begin: of the stretch, in seconds of what is named.
        end: of it.

    Returns:
        ``video``, the clip's name, with ``begin`` and ``end`` in it; ``whole``, the video's id,
        with ``clip_begin`` and ``clip_end`` in that.

    Example:
        >>> clip_of("abc", 61.5, 70.0)["video"], clip_of("abc", 61.5, 70.0)["begin"]
        ('abc_60_120', 1.5)
    """
    clip = _CLIP.fullmatch(video)
    if clip and 0 < int(clip[3]) - int(clip[2]) <= _CLIP_SECONDS:
        whole, first, last = clip[1], int(clip[2]), int(clip[3])
    else:
        whole, first = video, int(begin // _CLIP_SECONDS) * _CLIP_SECONDS
        last, begin, end = first + _CLIP_SECONDS, begin - first, end - first
    return {
        **{"video": f"{whole}_{first}_{last}", "begin": begin, "end": end},
        **{"whole": whole, "clip_begin": first, "clip_end": last},
    }


def _entry(
    key: str, question: str, place: Mapping[str, Any], options: Sequence[str], right: int
) -> Entry:
    if not 0 <= right < len(options):
        raise BadInput(f"question {key}", expected="an answer 0 to 3", found=str(right))
    return Entry(
        id=key,
        target=ascii_uppercase[right],
        values={"question": question, **place},
        meta={"video": place["video"]},
        options=tuple(options),
    )
