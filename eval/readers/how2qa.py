"""How2QA (Li et al., EMNLP 2020) in its two releases: four options about a clip."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json, read_jsonl, read_table

_COLUMNS = ("video", "time", "wrong1", "wrong2", "wrong3", "question", "right")


def read(files: Mapping[str, Path], seed: int = 0) -> Iterator[Entry]:
    """Yield questions of the first release (a table) or of VALUE's (JSON lines).

    In the table the right answer is always the last one, and a model that always says one letter
    would get all or nothing: its options are shuffled by the seed and the question's own id.

    Args:
        files: ``questions``; ``videos``, a mapping from clip to file, may be left out.
        seed: of the shuffling.
    """
    places = read_json(files["videos"]) if "videos" in files else {}
    table = files["questions"].suffix == ".csv"
    found = _table(files["questions"], seed) if table else _lines(files["questions"])
    for entry in found:
        entry.values["video"] = places.get(entry.values["video"], entry.values["video"])
        yield entry


def _table(path: Path, seed: int) -> Iterator[Entry]:
    for number, row in enumerate(read_table(path, _COLUMNS, header=False)):
        begin, _, end = row["time"].strip("[]").partition(":")
        options = [row["wrong1"], row["wrong2"], row["wrong3"], row["right"]]
        order = list(range(len(options)))
        random.Random(f"how2qa/{seed}/{number}").shuffle(order)
        asked = (row["video"], row["question"], float(begin), float(end))
        yield _entry(str(number), asked, [options[place] for place in order], order.index(3))


def _lines(path: Path) -> Iterator[Entry]:
    for record in read_jsonl(path):
        begin, _, end = str(record["ts"]).partition("-")
        options = [record[f"a{number}"] for number in range(4)]
        asked = (record["vid_name"], record["q"], float(begin), float(end))
        yield _entry(str(record["qid"]), asked, options, int(record["answer_idx"]))


def _entry(
    key: str, asked: tuple[str, str, float, float], options: Sequence[str], right: int
) -> Entry:
    if not 0 <= right < len(options):
        raise BadInput(f"question {key}", expected="an answer 0 to 3", found=str(right))
    video, question, begin, end = asked
    return Entry(
        id=key,
        target=ascii_uppercase[right],
        values={"question": question, "video": video, "begin": begin, "end": end},
        meta={"video": video},
        options=tuple(options),
    )
