"""Captions in COCO's form: ``images`` and ``annotations`` in one file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_json


def read(files: Mapping[str, Path], meta: Sequence[str] = ()) -> Iterator[Entry]:
    """Yield one entry per image (or whatever the file calls an image), with all its captions.

    Every key of an image can be used in templates; ``basename`` is its file name without folders,
    ``stem`` that without suffix.

    Args:
        files: ``captions``.
        meta: keys of an image that are kept, such as its domain.

    Raises:
        BadInput: an image without a caption.
    """
    data = read_json(files["captions"])
    captions: dict[Any, list[str]] = defaultdict(list)
    for record in data["annotations"]:
        captions[record["image_id"]].append(record["caption"])
    for image in data["images"]:
        key = image["id"]
        if key not in captions:
            raise BadInput(files["captions"], expected=f"captions of {key!r}", found="none")
        name = str(image.get("file_name", key))
        yield Entry(
            id=str(key),
            target=captions[key],
            values={
                **{**image, "file_name": name},
                **{"basename": Path(name).name, "stem": Path(name).stem},
            },
            meta={"item": key, **{name: image.get(name, "") for name in meta}},
        )
