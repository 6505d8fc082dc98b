"""Text tokenizers behind one small face: Hugging Face fast tokenizers and LLaMA-2's own model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from onellm.errors import CheckpointError

Span = tuple[int, int]


class TextTokenizer(Protocol):
    """What the rest of the library asks of a text tokenizer.

    Attributes:
        bos_id: id that begins every sequence.
        eos_id: id that ends an answer.
        pad_id: id used for padding; never attended to.
    """

    bos_id: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text without special tokens, and the character span of each."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        ...

    def save(self, folder: Path) -> None:
        """Write what :func:`load_text_tokenizer` needs into a folder."""
        ...


class HFText:
    """A Hugging Face fast tokenizer.

    Args:
        tokenizer: a ``PreTrainedTokenizerFast``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer
        eos = tokenizer.eos_token_id
        bos = tokenizer.bos_token_id
        self.eos_id: int = eos
        self.bos_id: int = bos if bos is not None else eos
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids without special tokens, and their character spans."""
        out = self.hf(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(out["input_ids"]), [tuple(span) for span in out["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.hf.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.hf.save_pretrained(folder)


class SentencePieceText:
    """LLaMA-2's ``tokenizer.model``, read with sentencepiece.

    Args:
        path: the model file.
    """

    def __init__(self, path: str | Path) -> None:
        import sentencepiece

        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{path}: expected a sentencepiece model; found no such file")
        self.sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos_id, self.eos_id = self.sp.bos_id(), self.sp.eos_id()
        # LLaMA-2 has no padding id (it is −1); padding is masked, so any valid id will do.
        self.pad_id = self.sp.pad_id() if self.sp.pad_id() >= 0 else self.eos_id

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids without special tokens, and their character spans.

        The spans are counted from the pieces themselves, because the library's own way to them
        changed between its versions. A character written as several byte pieces is the span of
        each of them.
        """
        ids = self.sp.encode(text)
        char_at = [i for i, char in enumerate(f" {text}") for _ in char.encode()]
        spans, at = [], 0
        for piece in ids:
            size = 1 if self.sp.is_byte(piece) else len(self._written(piece))
            # The first character is the space that the tokenizer puts in front of every text.
            spans.append((max(char_at[at] - 1, 0), char_at[at + size - 1]))
            at += size
        return ids, spans

    def _written(self, piece: int) -> bytes:
        return self.sp.id_to_piece(piece).replace("\u2581", " ").encode()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        special = {self.bos_id, self.eos_id}
        return self.sp.decode([int(i) for i in ids if int(i) not in special])

    def save(self, folder: Path) -> None:
        """Write the model file, which may be the one it was read from."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self.sp.serialized_model_proto())


def load_text_tokenizer(folder: str | Path) -> TextTokenizer:
    """Load what :meth:`TextTokenizer.save` wrote, or any Hugging Face tokenizer folder.

    Raises:
        CheckpointError: the folder holds neither kind.
    """
    path = Path(folder)
    if (path / "tokenizer.json").exists():
        from transformers import AutoTokenizer

        return HFText(AutoTokenizer.from_pretrained(str(path)))
    if (path / "tokenizer.model").exists():
        return SentencePieceText(path / "tokenizer.model")
    raise CheckpointError(f"{folder}: expected tokenizer.json or tokenizer.model; found neither")
