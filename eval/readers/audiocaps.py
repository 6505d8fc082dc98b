"""AudioCaps (Kim et al., NAACL 2019): captions of clips in rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_table


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield clips with the captions of all their rows.

    Args:
        files: ``captions``.
    """
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")
    captions: dict[tuple[str, str], list[str]] = {}
    for row in read_table(files["captions"], columns):
        clip = (row["youtube_id"], row["start_time"])
        captions.setdefault(clip, []).append(row["caption"])
    for (video, start), texts in captions.items():
        yield Entry(
            id=f"{video}_{start}",
            target=texts,
            values={"video": video, "start": start},
            meta={"item": f"{video}_{start}"},
        )
