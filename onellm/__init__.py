"""onellm: language models that understand signals.

Importing this package costs milliseconds: names are resolved when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "OneLLM": "onellm.model",
    "OneLLMConfig": "onellm.model",
    "Encoder": "onellm.encoder",
    "EncoderConfig": "onellm.encoder",
    "UPM": "onellm.projection.upm",
    "UPMConfig": "onellm.projection.upm",
    "Modality": "onellm.modality",
    "register_modality": "onellm.registry",
    "modality_classes": "onellm.registry",
    "get_modality": "onellm.registry",
    "TokenSeq": "onellm.sequence",
    "Spliced": "onellm.splice",
    "Sample": "onellm.data.sample",
    "Blob": "onellm.source",
    "OneLLMError": "onellm.errors",
    "BadInput": "onellm.errors",
    "ConfigError": "onellm.errors",
    "CheckpointError": "onellm.errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from onellm.data.sample import Sample as Sample
    from onellm.encoder import Encoder as Encoder
    from onellm.encoder import EncoderConfig as EncoderConfig
    from onellm.errors import BadInput as BadInput
    from onellm.errors import CheckpointError as CheckpointError
    from onellm.errors import ConfigError as ConfigError
    from onellm.errors import OneLLMError as OneLLMError
    from onellm.modality import Modality as Modality
    from onellm.model import OneLLM as OneLLM
    from onellm.model import OneLLMConfig as OneLLMConfig
    from onellm.projection.upm import UPM as UPM
    from onellm.projection.upm import UPMConfig as UPMConfig
    from onellm.registry import get_modality as get_modality
    from onellm.registry import modality_classes as modality_classes
    from onellm.registry import register_modality as register_modality
    from onellm.sequence import TokenSeq as TokenSeq
    from onellm.source import Blob as Blob
    from onellm.splice import Spliced as Spliced


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onellm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
