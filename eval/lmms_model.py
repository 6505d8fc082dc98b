"""The model class that lmms-eval drives; importable only where lmms-eval is installed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from onellm.errors import ConfigError
from onellm.eval.launch import local_device
from onellm.eval.likelihood import option_chances
from onellm.eval.lmms import content_types, medium_of
from onellm.generation import soft_tokens
from onellm.model import OneLLM

DEFAULT_TOKENS = 64
"""Longest answer where a task says nothing."""


class OneLLMForLmms(lmms):  # type: ignore[misc]
    """A saved model, in as many processes as ``accelerate launch`` or ``torchrun`` start.

    The toolkit deals out the documents and gathers the scores; a process needs to know no more
    than its own device.

    Args:
        pretrained: folder or hub id.
        device: where to run; the GPU if any, and of several processes each its own.
        dtype: of the weights.
        batch_size: requests of one pass; it changes no answer.
        **unused: further settings that the toolkit passes to every model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = 1,
        **unused: Any,
    ) -> None:
        super().__init__()
        named = device if device not in (None, "cuda") else local_device()
        self.device = torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))
        loaded = OneLLM.from_pretrained(pretrained, device=self.device, dtype=getattr(torch, dtype))
        self.model = loaded.eval()
        self.batch_size, self.types = int(batch_size), content_types()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests; those with the same settings share passes.

        Args:
            requests: the toolkit's, with (context, settings, visuals, …) as arguments.
        """
        answers: dict[int, str] = {}
        for places in self._alike(requests, lambda args: _settings_key(args[1])):
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                prompts = [requests[place].args[0] for place in batch]
                media = [self._media(requests[place].args) for place in batch]
                settings = decoding_of(requests[batch[0]].args[1])
                said = self.model.generate(prompts, media, **settings)
                answers.update(zip(batch, said, strict=True))
        return [answers[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Loss of each continuation, and whether greedy decoding gives it.

        The toolkit's documentation asks for log-probabilities; its multiple choice takes the
        option with the least number, as its own models return losses (means over tokens). So do
        we. It would turn a bare pair into text, hence the wrapper.

        Args:
            requests: the toolkit's, with (context, continuation, visuals, …) as arguments; those
                of one question share its prompt and media.
        """
        results: list[Any] = []
        for _, group in groupby(requests, key=lambda r: (r.args[0], *map(str, r.args[3:6]))):
            several = list(group)
            first = several[0].args
            options = [self._continuation(request.args).strip() for request in several]
            soft = soft_tokens(self.model, [self._media(first)])
            (chances,) = option_chances(self.model, [first[0]], soft, [options])
            results += [GenerationResult((-chance.mean, chance.greedy)) for chance in chances]
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("onellm answers lmms-eval's tasks of one round only")

    def _alike(
        self, requests: Sequence[Any], key: Callable[[tuple[Any, ...]], Hashable]
    ) -> list[list[int]]:
        groups: dict[Hashable, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(key(request.args), []).append(place)
        return list(groups.values())

    def _doc(self, args: tuple[Any, ...]) -> Any:
        doc_id, task, split = args[-3:]
        return self.task_dict[task][split][doc_id]

    def _media(self, args: tuple[Any, ...]) -> list[tuple[str, Any]]:
        visuals = args[2](self._doc(args)) if args[2] is not None else None
        return [medium_of(visual, self.types) for visual in visuals or ()]

    def _continuation(self, args: tuple[Any, ...]) -> str:
        wanted = args[1]
        return wanted if isinstance(wanted, str) else str(wanted(self._doc(args)))


def _settings_key(settings: dict[str, Any]) -> Hashable:
    return repr(sorted(settings.items(), key=lambda pair: pair[0]))


def decoding_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Our settings from a task's ``generation_kwargs``.

    Args:
        settings: ``until``, ``max_new_tokens``, ``temperature``, ``top_p``, ``do_sample``,
            ``num_beams``; others mean nothing here.
    """
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    temperature = float(settings.get("temperature") or 0.0)
    if settings.get("do_sample") is False:
        temperature = 0.0
    return {
        "max_new_tokens": int(settings.get("max_new_tokens") or DEFAULT_TOKENS),
        "temperature": temperature,
        "top_p": float(settings.get("top_p") or 1.0) if temperature else 1.0,
        "beams": int(settings.get("num_beams") or 1) if not temperature else 1,
        "stop": stop,
    }
