"""From records to scores: one function per kind of benchmark, found by its name.

A record is one line of the file of answers: ``id``, ``answer`` (the model's text), ``target`` (the
truth, in the shape that the scorer's docstring gives), ``meta`` (groups), ``media``, and
``options`` and ``choice_logprobs`` where there are some. Nothing here imports torch.

Example:
    >>> score("gqa", [{"id": "1", "answer": "Red.", "target": "red"}]).metrics["accuracy"]
    100.0
"""

from onellm.eval.scorers.registry import Score, describe, names, score, scorer

__all__ = ["Score", "describe", "names", "score", "scorer"]
