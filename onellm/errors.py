"""Errors whose message is written for the person at the keyboard.

The command line prints them without a traceback and leaves with exit code 2.
"""

from __future__ import annotations


class OneLLMError(Exception):
    """Base of every error this library raises on purpose."""


class BadInput(OneLLMError):
    """A file or array that cannot be used.

    Args:
        source: the file (or a short description of the array) at fault.
        expected: what would have been right, in the user's units.
        found: what was there instead.
        hint: what to do about it, one sentence.

    Example:
        >>> raise BadInput("dog.wav", expected="audio samples", found="an empty file")
    """

    def __init__(self, source: object, *, expected: str, found: str, hint: str = "") -> None:
        self.source, self.expected, self.found, self.hint = str(source), expected, found, hint
        tail = f" {hint}" if hint else ""
        super().__init__(f"{source}: expected {expected}; found {found}.{tail}")

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments survive worker processes
        return _rebuild, (self.source, self.expected, self.found, self.hint)


def _rebuild(source: str, expected: str, found: str, hint: str) -> BadInput:
    return BadInput(source, expected=expected, found=found, hint=hint)


class ConfigError(OneLLMError):
    """A configuration that names an unknown key, a wrong value or an impossible combination."""


class CheckpointError(OneLLMError):
    """A checkpoint that is missing, damaged or does not fit the model."""


class TrainingError(OneLLMError):
    """A run that cannot go on to any good, such as one whose loss is no longer a number."""


class MissingExtra(OneLLMError):
    """An optional dependency that is not installed.

    Args:
        package: what to import.
        extra: the name of our extra that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed: pip install 'onellm[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:  # from its message alone it could not be made
        return MissingExtra, (self.package, self.extra)


def plain_reason(error: OSError) -> str:
    """What an error of the operating system says, without its number.

    Args:
        error: as it was caught.

    Returns:
        such as ``"answers/a.jsonl: no such file or directory"``; the file is left out where the
        error has none.
    """
    if not error.strerror:  # raised by a library with a sentence of its own
        return str(error) or type(error).__name__
    reason = error.strerror[0].lower() + error.strerror[1:]
    return f"{error.filename}: {reason}" if error.filename is not None else reason
