"""Scene classification from a manifest: JSON lines with ``id``, ``scene`` and the maps' paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onellm.errors import BadInput
from onellm.eval.annotations import Entry, read_jsonl


def read(files: Mapping[str, Path], classes: Sequence[str] = ()) -> Iterator[Entry]:
    """Yield scenes; every key of a line can be used in templates.

    Args:
        files: ``manifest``.
        classes: all class names, in the order that the prompt lists them.

    Raises:
        BadInput: a scene of no class.
    """
    listed = ", ".join(name.replace("_", " ") for name in classes)
    for record in read_jsonl(files["manifest"]):
        scene = record["scene"]
        if scene not in classes:
            where = f"{files['manifest']}, id {record['id']}"
            raise BadInput(where, expected=f"a scene among {listed}", found=repr(scene))
        yield Entry(
            id=str(record["id"]),
            target=scene,
            values={**record, "classes": listed},
            meta={"scene": scene},
            options=tuple(classes),
        )
