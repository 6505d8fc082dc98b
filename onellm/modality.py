"""What a modality is: one class in one file, and nothing anywhere else that names it.

Shape legend: B batch, L tokens, D width of the encoder, T frames, ``…`` the signal's own axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from onellm.errors import BadInput, plain_reason
from onellm.source import Blob, Source, source_name

if TYPE_CHECKING:
    from PIL.Image import Image


_EMPTIED = (str, list, tuple)


def is_there(record: Mapping[str, Any], field: str) -> bool:
    """Whether a record has something in a field; an empty text or list is nothing."""
    value = record.get(field)
    if value is None:
        return False
    return bool(value) if isinstance(value, _EMPTIED) else True


class Modality(BaseModel):
    """A kind of signal: how to read it, how to tokenize it, how to show it.

    A modality subclasses this, sets the class attributes, implements :meth:`read`,
    :meth:`example`, :meth:`thumbnail` and, unless the encoder's own patch convolution serves,
    :meth:`build_tokenizer`. Fields are its options (sizes, rates); they are stored in a model's
    ``config.json``, and their defaults are the published ones.

    Attributes:
        name: the modality's name, as used in ``model.encode(name, x)``.
        suffixes: lower-case file suffixes it reads.
        caption_prompt: the instruction that asks for a caption.
        positions: ``"own"`` for a position table of its own, ``"shared"`` for the encoder's.
        frame_axis: True when a signal is a stack of frames ``(T, …)``, each encoded on its own
            and averaged behind the encoder.
        frame_reduce: ``"mean"`` over frames as published, which forgets their order; ``"gated"``
            multiplies each frame by a trained vector of its own first, so that "coming closer"
            and "moving away" differ. Without a frame axis it does nothing.
        max_megabytes: larger files are refused (10^6 bytes).
        forms: how a source is written on the command line, behind ``--<name>``.
        record_fields: fields of a JSON, CSV or Parquet record that hold a file of this modality;
            its name, and its name with ``_path``, if left empty.
        published_name: the name in the published checkpoints.
        published_keys: published key → parameter name inside this modality's tokenizer.
        published_options: options the published weights were trained with, where they differ
            from our defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    caption_prompt: ClassVar[str]
    positions: ClassVar[Literal["own", "shared"]] = "own"
    frame_axis: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("FILE",)
    record_fields: ClassVar[tuple[str, ...]] = ()
    published_name: ClassVar[str] = ""
    published_keys: ClassVar[Mapping[str, str]] = {}
    published_options: ClassVar[Mapping[str, Any]] = {}

    max_megabytes: float = 512.0
    frame_reduce: Literal["mean", "gated"] = "mean"

    # -- to implement ---------------------------------------------------------------------

    def read(self, source: Source) -> Tensor:
        """Read and prepare one signal, float32, without a batch axis."""
        raise TypeError(f"{type(self).__name__} must implement read(source)")

    def example(self) -> Tensor:
        """A signal of zeros of the right shape; token counts are found by running it."""
        raise TypeError(f"{type(self).__name__} must implement example()")

    def thumbnail(self, source: Source) -> Image:
        """A small picture of the source for reports, at most 160 × 160 pixels."""
        raise TypeError(f"{type(self).__name__} must implement thumbnail(source)")

    def build_tokenizer(self, width: int) -> nn.Module | None:
        """Build signal (B, …) → tokens (B, L, D); None takes the encoder's patch convolution.

        Args:
            width: D, the encoder's width.
        """
        return None

    # -- with defaults --------------------------------------------------------------------

    def augment(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """A random variation of a signal that keeps its meaning, for training.

        Args:
            signal: what :meth:`load` returned.
            generator: the only source of randomness (seeded per sample by the loader).
        """
        return signal

    def from_shard(self, files: Mapping[str, bytes], meta: Mapping[str, Any], key: str) -> Source:
        """Pick this modality's source among the members of one shard sample.

        Args:
            files: suffix without its first dot (``"jpg"``, ``"rgb.jpg"``) → bytes.
            meta: the sample's parsed ``.json``.
            key: the sample's key, for error messages.

        Raises:
            BadInput: none, or more than one, of the members has a known suffix.
        """
        known = [ext for ext in files if f".{ext}" in self.suffixes]
        if len(known) != 1:
            raise BadInput(
                key,
                expected=f"one member with a suffix among {', '.join(self.suffixes)}",
                found=", ".join(sorted(files)) or "nothing",
            )
        return Blob(f"{key}.{known[0]}", files[known[0]])

    def claims(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The fields of a record that make one source of this modality, the file's first.

        Args:
            record: field → value, as a data set has it.

        Returns:
            field names; () where the record holds none of this modality.
        """
        known = self.record_fields or (self.name, f"{self.name}_path")
        return next(((field,) for field in known if is_there(record, field)), ())

    def from_record(
        self,
        record: Mapping[str, Any],
        fields: tuple[str, ...],
        locate: Callable[[Any], Source],
    ) -> Source:
        """Make this modality's source of a record.

        Args:
            record: field → value.
            fields: what :meth:`claims` named; or the one field that a data set declares.
            locate: turns a field's value into a file, bytes in memory or an array.
        """
        return locate(record[fields[0]])

    def excerpt(self, source: Source) -> Source:
        """The part of a source that :meth:`read` looks at, for copies of a data set.

        Args:
            source: any source; what has no parts comes back as it is.
        """
        return source

    # -- final ----------------------------------------------------------------------------

    def load(self, source: Source) -> Tensor:
        """Read one signal and check it.

        Args:
            source: see :mod:`onellm.source`.

        Returns:
            float32 tensor without a batch axis, shaped like :meth:`example` (the number of
            frames may differ where there is a frame axis).

        Raises:
            BadInput: names the file, what was expected and what was found.
        """
        name = source_name(source)
        try:
            signal = self.read(source).to(torch.float32)
        except (OSError, ValueError, EOFError) as error:  # of a reader without checks of its own
            said = plain_reason(error) if isinstance(error, OSError) else str(error)
            reason = f"a file that cannot be read ({said})"
            raise BadInput(name, expected=f"a {self.name} signal", found=reason) from error
        want = tuple(self.example().shape)
        got = tuple(signal.shape)
        skip = 1 if self.frame_axis else 0
        if len(got) != len(want) or got[skip:] != want[skip:] or 0 in got:
            raise BadInput(name, expected=f"a {self.name} signal of shape {want}", found=f"{got}")
        if not torch.isfinite(signal).all():
            bad = int((~torch.isfinite(signal)).sum())
            raise BadInput(
                name,
                expected="finite numbers",
                found=f"{bad} NaN or infinite value(s) of {signal.numel()}",
            )
        return signal
