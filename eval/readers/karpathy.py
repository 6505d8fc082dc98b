"""Karpathy's splits of COCO and Flickr30K (Karpathy and Fei-Fei, CVPR 2015)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path], split: str = "test") -> Iterator[Entry]:
    """Yield the pictures of a split with their captions as written.

    Args:
        files: ``captions``.
        split: ``val`` or ``test``.
    """
    for image in read_json(files["captions"])["images"]:
        if image["split"] != split:
            continue
        # An image of COCO is known by COCO's number, one of Flickr30K by its file.
        key = image.get("cocoid", image["filename"])
        yield Entry(
            id=str(key),
            # The raw text: the scorer has its own tokens, and those of the file differ from them.
            target=[sentence["raw"] for sentence in image["sentences"]],
            values={"filename": image["filename"], "filepath": image.get("filepath", "")},
            meta={"item": key},
        )
