"""A server of vLLM's as the writer of a run that tunes an adapter: members are adapters that it loads while it runs.

It is as vLLM has it, with nothing of ours in it: `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve … --enable-lora`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from zoreward.members import Tuned
from zoreward.records import InputError, Member, Update, one_line
from zoreward.scoring.adapter_files import Adapter
from zoreward.scoring.protocol import Generation, Tokens
from zoreward.scoring.served import Written, settings_of

# Requests that are out at a time: the server makes its batches of them.
AT_A_TIME = 64
# Seconds that an answer may take.
TIMEOUT = 600.0
_START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 8 --max-loras 32"


class ServerWriter:
    """See `Writer`: a server of vLLM's.

    Args:
        url: http://host:port. If it asks for a key, that stands in the environment: VLLM_API_KEY.

    Raises:
        InputError: there is none, or it does not load adapters.
    """

    holds = False
    takes: set[str] | None = None
    rank: int | None = None
    folder: Path | None = None

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        self.name = f"a server of vllm {checked_server(url)}"

    def write(
        self, asked: Sequence[tuple[Adapter | None, Sequence[Tokens]]], how: Generation, ends: Sequence[int]
    ) -> list[list[Written]]:
        """See `Writer.write`: a request for each prompt."""
        names = [adapter.name for adapter, _ in asked if adapter is not None]
        work = [
            {"model": adapter.name, "prompt": list(prompt), **settings_of(how, row), **_TOLD, "stop_token_ids": ends}
            for adapter, own in asked
            if adapter is not None
            for row, prompt in enumerate(own)
        ]
        with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="zoreward-server") as threads:
            try:
                for adapter, _ in asked:
                    if adapter is not None:
                        self._load(adapter)
                found = iter(list(threads.map(self._written, work)))
            finally:
                for name in names:
                    _asked(f"{self._url}/v1/unload_lora_adapter", {"lora_name": name})
        return [[next(found) for _ in own] for _, own in asked]

    def _load(self, adapter: Adapter) -> None:
        told = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
        status, answer = _asked(f"{self._url}/v1/load_lora_adapter", told)
        if status != 200:
            hint = "It must see the folder: TMPDIR names another for both; and have room for its rank: --max-lora-rank."
            raise InputError(f"{self._url} cannot load {adapter.folder}: {one_line(answer, 200)}", hint=hint)

    def _written(self, request: Mapping[str, Any]) -> Written:
        status, answer = _asked(f"{self._url}/v1/completions", request)
        if status != 200:
            raise InputError(f"{self._url} does not write: {one_line(answer, 200)}", hint="Its own log says more.")
        [choice] = json.loads(answer)["choices"]
        return Written(tuple(choice["token_ids"]), float(sum(choice["logprobs"]["token_logprobs"])))

    def take(self, weights: Mapping[str, Any], tuned: Tuned) -> None:
        """It has no weights that move."""

    def apply(self, update: Update) -> None:
        """It has no weights that move."""

    def show(self, member: Member) -> None:
        """It has no weights that move."""

    def digest(self) -> str:
        """It has no weights that move."""
        return ""


# What a server is to tell of each text: its tokens, and how likely they were.
_TOLD = {"logprobs": 0, "return_token_ids": True}


def checked_server(url: str) -> str:
    """Return the release of vLLM behind a server.

    Raises:
        InputError: nobody is there, it is not vLLM, or it does not load adapters while it runs.
    """
    url = url.rstrip("/")
    status, answer = _asked(f"{url}/version")
    try:
        release = str(json.loads(answer)["version"]) if status == 200 else ""
    except (ValueError, KeyError, TypeError):
        release = ""
    if not release:
        raise InputError(f"{url} is no server of vLLM's (/version: {status})", hint=f"Start one: {_START}")
    status, _ = _asked(f"{url}/v1/load_lora_adapter", {})
    if status in (404, 405):
        raise InputError(f"{url} does not load adapters while it runs", hint=f"Start it so: {_START}")
    if status == 401:
        raise InputError(f"{url} asks for a key", hint="Set VLLM_API_KEY to that which it was started with.")
    return release


def _asked(url: str, told: Mapping[str, Any] | None = None) -> tuple[int, str]:
    """Get what is there, or post something; return the status and the answer.

    Raises:
        InputError: nobody answers.
    """
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("VLLM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    body = None if told is None else json.dumps(told).encode()
    try:
        with urlopen(Request(url, body, headers), timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise InputError(f"nobody answers at {url}: {one_line(str(why), 120)}", hint=f"Start one: {_START}") from error
