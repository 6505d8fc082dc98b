"""MME (Fu and others, 2023): yes or no, twice per picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def yes_or_no(answer: str) -> str | None:
    """Read an answer as the official tool does: its first four characters, spaces and all.

    So ``not sure`` is no, ``eyes`` is yes, and two spaces in front of ``yes`` hide it.

    Returns:
        ``yes``, ``no``, or None for what the tool calls ``other`` and counts as wrong.
    """
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


@dataclass(frozen=True)
class Subtask:
    """What one subtask comes to.

    Args:
        accuracy: share of questions answered rightly.
        accuracy_plus: share of pictures with both questions answered rightly.
    """

    accuracy: float
    accuracy_plus: float

    @property
    def score(self) -> float:
        """The two in percent, added: at most 200."""
        return 100 * self.accuracy + 100 * self.accuracy_plus


def mme(answers: Iterable[tuple[str, Hashable, bool]]) -> dict[str, Subtask]:
    """Score each subtask.

    Args:
        answers: (subtask, picture, whether the question was answered rightly). Order is free.

    Raises:
        ValueError: a picture with other than two questions.
    """
    by_picture: dict[str, dict[Hashable, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for subtask, picture, right in answers:
        by_picture[subtask][picture].append(right)
    scores = {}
    for subtask, pictures in by_picture.items():
        for picture, pair in pictures.items():
            if len(pair) != 2:
                raise ValueError(
                    f"MME asks twice about a picture; {subtask} {picture}: {len(pair)}"
                )
        hits = sum(sum(pair) for pair in pictures.values())
        both = sum(all(pair) for pair in pictures.values())
        scores[subtask] = Subtask(hits / (2 * len(pictures)), both / len(pictures))
    return scores


def totals(scores: dict[str, Subtask]) -> dict[str, float]:
    """``perception`` (at most 2000) and ``cognition`` (800): sums over the subtasks there are."""
    groups = {"perception": PERCEPTION, "cognition": COGNITION}
    return {
        name: sum(scores[s].score for s in subtasks if s in scores)
        for name, subtasks in groups.items()
        if any(s in scores for s in subtasks)
    }
