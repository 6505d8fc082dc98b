"""Classification of shapes that lie in folders by class: ModelNet40 (Wu et al., CVPR 2015)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onellm.errors import BadInput
from onellm.eval.annotations import Entry


def read(
    files: Mapping[str, Path],
    split: str = "test",
    suffixes: Sequence[str] = (".off", ".npy"),
) -> Iterator[Entry]:
    """Yield shapes class by class; the folders' names are the classes.

    Args:
        files: ``folder``, which holds ``<class>/<split>/<file>``.
        split: ``train`` or ``test``.
        suffixes: of the files; others are left out.

    Raises:
        BadInput: no such folder, or no class in it.
    """
    root = files["folder"]
    classes = sorted(path.parent.name for path in root.glob(f"*/{split}") if path.is_dir())
    if not classes:
        raise BadInput(root, expected=f"folders <class>/{split}", found="none")
    for name in classes:
        files_of = (root / name / split).iterdir()
        for path in sorted(path for path in files_of if path.suffix in suffixes):
            yield Entry(
                id=path.stem,
                target=name,
                values={"path": str(path.relative_to(root))},
                meta={"class": name},
                options=tuple(classes),
            )
