"""Metrics of Hugging Face evaluate."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoreward import get_objective, objective
from zoreward_objectives.answers import answers_of, text_of
from zoreward_objectives.arguments import hinted, read_options

if TYPE_CHECKING:
    from zoreward.registry import Objective

# Shipped objectives that measure the same, without a network.
_SHIPPED = {
    "accuracy": "accuracy",
    "bleu": "bleu",
    "exact_match": "exact-match",
    "f1": "f1",
    "matthews_correlation": "mcc",
    "rouge": "rouge",
    "sacrebleu": "bleu",
    "squad": "token-f1 or exact-match",
}


@objective("evaluate", needs="any")
def evaluate_(
    *,
    name: str,
    key: str | None = None,
    of: Literal["completions", "choices"] = "completions",
    answer_column: str = "answer",
    option: list[str] | None = None,
) -> Objective:
    """A metric of Hugging Face evaluate, by name from the Hub or as a folder: evaluate:chrf, evaluate:./my_metric.

    One number for the batch. The metric is given completions, as text, and right answers; or the chosen and the right
    choices, by index. Losses are negated and must be asked for as such: evaluate:neg_wer.

    Args:
        name: of the metric, or a folder that holds it.
        key: which of the numbers that it returns; needed where there are several and none has the metric's name.
        of: what it scores; completions or choices.
        answer_column: the column of the right answers, for completions; it holds a text, or a list of texts.
        option: an option of the metric's own, as name=value; give it once for each.

    Raises:
        LookupError: the metric is not here, and the Hub cannot be reached or has none of that name.
        ValueError: an option without "=".
    """
    wanted = name.removeprefix("neg_")
    sign = -1.0 if wanted != name else 1.0
    settings = read_options(option)
    metric = _loaded(wanted)
    short = Path(wanted).stem

    def compute(predictions: Sequence[Any], references: Sequence[Any]) -> float:
        numbers = metric.compute(predictions=predictions, references=references, **settings)
        return sign * _number(numbers, key, short)

    def of_completions(completions: Sequence[Any], **columns: Any) -> float:
        answers: list[Any] = answers_of(columns, answer_column, len(completions))
        if all(len(some) == 1 for some in answers):
            answers = [some[0] for some in answers]
        return compute([text_of(completion) for completion in completions], answers)

    def of_choices(predictions: Sequence[int], references: Sequence[int]) -> float:
        return compute(predictions, references)

    score: Callable[..., float] = of_completions if of == "completions" else of_choices
    score.__name__ = f"neg_{short}" if sign < 0 else short
    score.__doc__ = f"{short} of Hugging Face evaluate."
    return get_objective(score)


def _loaded(name: str) -> Any:
    if not (_is_here(name) or _is_cached(name)):
        if name.startswith((".", "/", "~")):
            raise LookupError(f"there is no folder {name!r} with a metric {Path(name).stem}.py")
        if not _hub_is_reachable():
            # evaluate itself says after many seconds that the metric does not exist.
            instead = f", or take the objective {_SHIPPED[name]}" if name in _SHIPPED else ""
            message = f"the metric {name!r} comes from the Hugging Face Hub, which cannot be reached from here"
            hint = f"load it once where there is a network, or give a folder that holds {name}.py{instead}"
            raise hinted(LookupError(message), hint)
    try:
        import evaluate
    except ImportError as error:
        raise LookupError(f"its metrics need the package evaluate ({error}): pip install evaluate") from error
    try:
        return evaluate.load(os.path.expanduser(name))
    except FileNotFoundError as error:
        raise LookupError(f"the Hugging Face Hub has no metric {name!r}; see https://hf.co/evaluate-metric") from error


def _is_here(name: str) -> bool:
    path = Path(name).expanduser()
    return path.is_file() or (path / f"{path.name}.py").is_file()


def _is_cached(name: str) -> bool:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    modules = Path(os.environ.get("HF_MODULES_CACHE") or Path(home) / "modules").expanduser()
    pattern = name.replace("/", "--") if "/" in name else f"evaluate-*--{name}"
    return any((modules / "evaluate_modules" / "metrics").glob(pattern))


def _hub_is_reachable(seconds: float = 0.7) -> bool:
    """Whether a connection can be made; looked up in a thread, because a name server may take long to say no."""
    import socket
    import threading
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    if any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE")
    ):
        return False
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    address = urlsplit(getproxies().get("https") or hub)
    reached = threading.Event()

    def connect() -> None:
        try:
            default = 80 if address.scheme == "http" else 443
            socket.create_connection((address.hostname or "", address.port or default), timeout=seconds).close()
            reached.set()
        except OSError:
            pass

    threading.Thread(target=connect, daemon=True).start()
    return reached.wait(seconds)


def _number(found: Mapping[str, Any], key: str | None, name: str) -> float:
    numbers = {one: value for one, value in found.items() if isinstance(value, int | float) or hasattr(value, "item")}
    if key is None:
        key = name if name in numbers else next(iter(numbers)) if len(numbers) == 1 else ""
    if key not in numbers:
        raise LookupError(f"the metric {name!r} returns {', '.join(found)}: say which with the option key")
    return float(numbers[key])
