"""A judge behind an OpenAI-compatible address: chat completions over plain HTTP."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

from onellm.errors import BadInput, ConfigError
from onellm.eval.judge import Reply

KEY_VARIABLE = "ONELLM_JUDGE_KEY"
"""Environment variable with the address's key; no other place is looked at."""
_BUSY = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
_SHOWN = 300  # characters of an error's text


@dataclass(frozen=True)
class Endpoint:
    """A model at an address.

    Args:
        url: up to and with ``/v1``.
        model: name of the model.
        retries: further tries where the address is busy or cannot be reached.
        wait: seconds before the first of them; each further one waits twice as long.
        timeout: seconds for a reply.
        sleep: how it waits.

    Raises:
        ConfigError: an address that is not HTTP.
    """

    url: str
    model: str
    retries: int = 5
    wait: float = 1.0
    timeout: float = 60.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"judge: an address starts with http:// or https://, not {self.url!r}"
            )

    @property
    def id(self) -> str:
        """Model and address."""
        return f"{self.model} at {self.url.rstrip('/')}"

    def ask(self, prompt: str, temperature: float, max_tokens: int) -> Reply:
        """Send a prompt.

        Raises:
            BadInput: the address refuses, stays busy, or replies with something else.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        found, retries = self._send(json.dumps(body).encode())
        try:
            reply = json.loads(found)
            usage = reply.get("usage") or {}
            return Reply(
                reply["choices"][0]["message"]["content"] or "",
                int(usage.get("prompt_tokens", 0)),
                int(usage.get("completion_tokens", 0)),
                retries,
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            shown = found[:_SHOWN].decode(errors="replace")
            raise BadInput(self.id, expected="a chat completion", found=shown) from error

    def _send(self, body: bytes) -> tuple[bytes, int]:
        """The reply's bytes, and how many further tries they took."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        problem = ""
        for number in range(self.retries + 1):
            if number:
                self.sleep(self.wait * 2 ** (number - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return reply.read(), number
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {error.read()[:_SHOWN].decode(errors='replace')}"
                if error.code not in _BUSY:
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                problem = str(error)
        raise BadInput(self.id, expected="a reply", found=problem)
