"""MME (Fu et al., 2023): folders of pictures, each with a text file of two yes/no questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onellm.errors import BadInput
from onellm.eval.annotations import Entry
from onellm.eval.metrics.mme import COGNITION, PERCEPTION

_PICTURES = (".jpg", ".png", ".jpeg")


def read(files: Mapping[str, Path]) -> Iterator[Entry]:
    """Yield both questions about each picture, subtask by subtask.

    A subtask is a folder with pictures and text files side by side, or with ``images`` and
    ``questions_answers_YN`` inside.

    Args:
        files: ``folder``, which holds the subtasks' folders.

    Raises:
        BadInput: no such folder, a text file without its picture, or with other than two lines.
    """
    root = files["folder"]
    if not root.is_dir():
        raise BadInput(root, expected="a folder with one folder per subtask", found="none")
    for name in sorted((*PERCEPTION, *COGNITION)):
        folder = root / name  # beside other things, such as the authors' eval_tool
        texts = folder / "questions_answers_YN"
        for text in sorted((texts if texts.is_dir() else folder).glob("*.txt")):
            yield from _pair(root, folder, text)


def _pair(root: Path, folder: Path, text: Path) -> Iterator[Entry]:
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) != 2:
        raise BadInput(text, expected="two questions", found=f"{len(lines)} lines")
    picture = _picture(folder, text)
    for number, line in enumerate(lines):
        question, tab, answer = line.rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            where = f"{text}, line {number + 1}"
            raise BadInput(where, expected="a question, a tab, and yes or no", found=repr(line))
        image = f"{folder.name}/{text.stem}"
        yield Entry(
            id=f"{image}/{number}",
            target=answer.strip(),
            values={"question": question.strip(), "path": str(picture.relative_to(root))},
            meta={
                **{"subtask": folder.name, "image": image},
                **{"file": picture.name, "question": question.strip()},
            },
        )


def _picture(folder: Path, text: Path) -> Path:
    places = [folder / "images", folder]
    for place in places:
        for suffix in _PICTURES:
            if (found := place / f"{text.stem}{suffix}").is_file():
                return found
    raise BadInput(text, expected=f"a picture {text.stem}.jpg or .png beside it", found="none")
