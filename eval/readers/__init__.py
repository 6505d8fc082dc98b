"""Readers of official annotation formats: one idea per file, each with ``read(files, …)``.

A reader takes the task's files by role and yields one
:class:`~onellm.eval.annotations.Entry` per question. It names no modality and opens no media;
the task's YAML file says where those are.
"""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """Names of the packaged readers."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
