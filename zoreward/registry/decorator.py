"""What a function says about itself: `@objective`, its parameters, its docstring."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from zoreward.records import InputError, one_line
from zoreward.registry.objective import Needs, Objective, Option, neighbours

F = TypeVar("F", bound=Callable[..., Any])

_SPEC = "__zoreward_objective__"
# What an objective may be handed beside the dataset's columns, so never an option.
_LOGPROBS = ("logprobs", "logprob_sums", "base_logprobs", "base_logprob_sums", "mismatched_ratios")
_PAIR = ("completions_a", "completions_b")  # of which a judge has the better
_OF_TEXTS = ("completions", "completion_ids", *_PAIR, "base_states")
_OF_BASE = ("base_completions", "base_completion_ids")
OUTPUTS = ("predictions", "references", *_LOGPROBS, "prompts", *_OF_TEXTS, *_OF_BASE)
FROM_TRL = ("trainer_state", "log_extra", "log_metric")


@dataclass(frozen=True, slots=True)
class _Spec:
    name: str
    needs: Needs
    range: tuple[float, float] | None
    rowwise: bool


def objective(
    name: str, *, needs: Needs | None = None, range: tuple[float, float] | None = None, rowwise: bool = False
) -> Callable[[F], F]:
    """Make a function or a class an objective; it is returned as it is, so TRL and your own code can go on calling it.

    Keyword-only parameters with a type and a default are the objective's options. A class takes its options in
    `__init__` and what is scored in `__call__`; it is made once, so it can hold a model.

    Args:
        name: what users call it; also the key of its entry point.
        needs: may be left out where a parameter says it: `completions`, or `predictions` or `logprobs` (choices).
            `any`: the function scores nothing itself; it takes only options and returns an `Objective`.
        range: the lowest and the highest score possible.
        rowwise: the score of a completion depends on what the function is given of its row alone. So the rows of all
            members come in one call, which is what a reward model wants; rows may be scored apart from each other
            (`--reward-workers`), and scores may be cached (`--reward-cache`).

    Raises:
        InputError: neither `needs` nor the parameters show what the objective needs; or `rowwise` is given for one that
            scores no completions.

    >>> from zoreward import get_objective
    >>> @objective("brevity")
    ... def brevity(completions, *, target: int = 40, **columns) -> list[float]:
    ...     "Reward completions close to a target length."
    ...     return [-abs(len(c) - target) / target for c in completions]
    >>> brevity(["x" * 30]), get_objective(brevity, target=60).score(1, completions=["x" * 30])
    ([-0.25], -0.5)
    """
    if not isinstance(name, str):
        raise InputError("@objective stands without a name", hint='write it with one: @objective("brevity")')

    def mark(function: F) -> F:
        needed = _needs(name, function, needs)
        if rowwise and needed != "completions":
            message = f"objective {name!r} needs {needed}, and rowwise is for objectives that need completions"
            raise InputError(message, hint="leave rowwise out")
        setattr(function, _SPEC, _Spec(name, needed, range, rowwise))
        return function

    return mark


def assume_completions(function: Callable[..., Any]) -> Objective:
    """Return the objective that a function is where only rewards of completions are expected, as in TRL.

    What does not say what it needs, but takes prompts or any keyword, is called with all that a reward is given.

    >>> assume_completions(lambda prompts, **kwargs: [0.0 for _ in prompts]).needs
    'completions'
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return describe(function)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    says_it = not parameters.keys().isdisjoint((*_OF_TEXTS, "predictions", *_LOGPROBS))
    return describe(function, assumed=None if says_it or not (open_ended or "prompts" in parameters) else "completions")


def describe(function: Any, key: str | None = None, *, assumed: Needs | None = None) -> Objective:
    """Read name, needs, options and help from a callable.

    Args:
        function: the callable.
        key: its name where it has no decorator.
        assumed: what it needs where it has no decorator; by default that is seen from its parameters.

    Raises:
        InputError: it is no objective.
    """
    if not callable(function):
        kind = type(function).__name__  # and not its repr: that of os.environ holds secrets
        message = f"a value of type {kind!r} is no objective"
        raise InputError(message, hint="an objective is a function, or a class with __call__")
    plain = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    spec = getattr(plain, _SPEC, None)
    name = spec.name if spec else (key or str(getattr(plain, "__name__", type(plain).__name__)))
    doc = inspect.getdoc(plain) or ""
    stateful = isinstance(function, type)
    whole_doc = f"{doc}\n\n{inspect.getdoc(function.__init__)}" if stateful else doc
    needs = spec.needs if spec else _needs(name, function, assumed)
    return Objective(
        name=name,
        needs=needs,
        function=function,
        options=_options(name, function, whole_doc, makes=stateful or needs == "any"),
        values={},
        help=doc.strip().partition("\n")[0],
        distribution="",
        range=spec.range if spec else None,
        stateful=stateful,
        rowwise=spec.rowwise if spec else False,
    )


def _needs(name: str, function: Callable[..., Any], declared: str | None) -> Needs:
    call: Callable[..., Any] = function
    if isinstance(function, type):
        call = function.__call__
        if not inspect.isfunction(call):
            raise InputError(f"objective {name!r} is a class without __call__", hint="what is scored goes to __call__")
    try:
        parameters = inspect.signature(call).parameters
    except ValueError as error:  # some functions written in C do not say what they take
        raise InputError(f"objective {name!r} has no readable parameters", hint="wrap it in a function") from error
    if declared is not None:
        if declared not in typing.get_args(Needs):
            hint = neighbours(str(declared), typing.get_args(Needs), "It can need")
            raise InputError(f"objective {name!r} cannot need {declared!r}", hint=hint)
        return typing.cast(Needs, declared)
    if not parameters.keys().isdisjoint(_OF_TEXTS):
        return "completions"
    if "predictions" in parameters or not parameters.keys().isdisjoint(_LOGPROBS):
        return "choices"
    hint = f'name one of them completions, predictions or logprobs, or say it: @objective("{name}", needs=…)'
    raise InputError(f"what objective {name!r} needs from the model cannot be seen from its parameters", hint=hint)


def _options(name: str, function: Callable[..., Any], doc: str, makes: bool) -> tuple[Option, ...]:
    # What a row brings may be asked for without a default; where no rows come in, it can only be an option.
    written = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
        and (makes or parameter.default is not parameter.empty)
        and parameter.annotation is not parameter.empty
        and parameter.name not in OUTPUTS + FROM_TRL
    ]
    # Only the options' annotations are resolved: those of the outputs may name types that exist for the checker alone.
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation for parameter in written})
    try:
        hints = typing.get_type_hints(holder, globalns=_globals(function))
    except Exception as error:
        raise InputError(
            f"the type of an option of objective {name!r} cannot be resolved: {one_line(error)}"
        ) from error
    lines = _argument_lines(doc)
    return tuple(Option(p.name, hints[p.name], p.default, lines.get(p.name, "")) for p in written)


def _globals(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the names that a callable's annotations refer to: the globals of the module that defines it."""
    plain: Any = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    if isinstance(plain, type):
        plain = plain.__init__  # type: ignore[misc]
    elif not inspect.isroutine(plain):
        plain = type(plain).__call__
    return getattr(inspect.unwrap(plain), "__globals__", {})


def _argument_lines(doc: str) -> dict[str, str]:
    """Return the entries under `Args:` of a Google-style docstring, each as one line.

    >>> _argument_lines("Do it.\\n\\nArgs:\\n    size (int): how big\\n        it is\\n    name: who\\n\\nReturns: no")
    {'size': 'how big it is', 'name': 'who'}
    """
    entries: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Arguments):[ \t]*\n((?:[ \t]+.*\n?|[ \t]*\n)*)", doc, flags=re.MULTILINE):
        name = ""
        for line in inspect.cleandoc("\n" + section).splitlines():
            entry = re.match(r"\*{0,2}(\w+)(?: \([^)]*\))?:\s*(.*)", line)
            if entry:
                name, text = entry.groups()
                entries[name] = text
            elif name and line.strip():
                entries[name] = f"{entries[name]} {line.strip()}".strip()
    return entries
