"""The card of a tuned model, `README.md` beside its weights: what a run's header and its scores say, and no more."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from zoreward.config import Prompting
from zoreward.data import parted
from zoreward.data.reading import fitting
from zoreward.journal.disk import open_file, write_whole
from zoreward.records import InputError, one_line

CARD_NAME = "README.md"
PROMPTING_NAME = "prompting.json"
LONGEST = 300
"""Characters of a value."""

# A record of the prompt's options is a hundredth of this.
_MOST_BYTES = 1 << 20
# Options of a method that are told under a name of their own, or that are not the user's.
_TOLD = ("name", "seed", "lr")


@dataclass(frozen=True, slots=True)
class Told:
    """What a card says beside what the header says.

    Args:
        step: after how many steps the weights stand.
        steps: how many steps the run did.
        kind: `whole`, `adapter` or `merged`: what stands beside the card.
        evaluations: (steps done, score on the dev rows).
        rows: what the rows are for → how many there were and where they come from.
        scores: what else was measured, as a text → its value.
        command: that made it, or "".
        metadata: more fields for the card's head: `license`, `language`, `tags`, ….
        has_moved: whether a step up to `step` moved a weight.
        combined: of weights that are those of no step, the words of `zoreward replay` that made them of some.
    """

    step: int
    steps: int
    kind: str = "whole"
    evaluations: Sequence[tuple[int, float]] = ()
    rows: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    has_moved: bool = True
    combined: Sequence[str] = ()


def write_card(folder: str | Path, header: Mapping[str, Any], told: Told) -> None:
    """Write the card of a model into its folder, in the place of one that another library wrote.

    Raises:
        OSError: it cannot be written.
    """
    text = card_of(header, told)
    write_whole(Path(folder, CARD_NAME), lambda file: file.write(text.encode("utf-8", "replace")))


def write_prompting(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Write beside a model how its rows became prompts, so that it can be asked as it was tuned.

    Args:
        folder: of the model.
        config: of the run's header: the options that are not at their defaults.

    Raises:
        OSError: it cannot be written.
    """
    asked = {option.name: config[option.name] for option in fields(Prompting) if option.name in config}
    text = json.dumps(asked, indent=1, default=str)
    write_whole(Path(folder, PROMPTING_NAME), lambda file: file.write(text.encode()))


def read_prompting(path: str | Path) -> Prompting | None:
    """Return the options that `write_prompting` wrote; None where there are none, or none that could be understood."""
    kinds = get_type_hints(Prompting)
    try:
        with open_file(path) as file:
            written = json.loads(file.read(_MOST_BYTES))
        return Prompting(**{name: fitting(value, str(value), kinds[name], name) for name, value in written.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, InputError):
        return None


def card_of(header: Mapping[str, Any], told: Told) -> str:
    """Return the text of a card.

    Args:
        header: of the run's journal, or as much of one as is known.
        told: the rest.

    >>> header = {"model": "gpt2", "objective": "accuracy", "method": {"name": "spsa", "seed": 3, "eps": 0.001}}
    >>> print(card_of(header, Told(step=2, steps=2, evaluations=[(0, 0.5), (2, 0.75)])).partition("| | |")[2])
    <BLANKLINE>
    |---|---|
    | base | `gpt2` |
    | objective | `accuracy` |
    | method | `spsa`: eps=0.001 |
    | paper | MeZO: Malladi et al. 2023, [arXiv 2305.17333](https://arxiv.org/abs/2305.17333) |
    | seed | 3 |
    | steps | 2 |
    | dev score | 0.5 before step 1, 0.75 after step 2, best 0.75 after step 2 |
    <BLANKLINE>
    """
    base = str(header.get("model") or "")
    title = "A tuned model" if told.has_moved else "A model that was not moved"
    lines = [
        *_head(base, told),
        "",
        f"# {_cell(told.metadata.get('model_name') or title)}",
        "",
        _what_it_is(told),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _table(base, header, told)),
    ]
    if told.command:
        lines += ["", "It was made by", "", *(f"    {line}" for line in told.command.splitlines())]
    return "\n".join([*lines, *_replay(base, header, told)]) + "\n"


def _replay(base: str, header: Mapping[str, Any], told: Told) -> list[str]:
    """How to make these weights again, where that needs nothing but the base and the run's trajectory."""
    adapter, config = header.get("adapter") or {}, header.get("config") or {}
    # A prefix begins with activations, which are in the run's folder; DoRA's lengths are those of one kind of device.
    needs_more = config.get("tune") == "prefix" or adapter.get("use_dora")
    if "fingerprint" not in header or needs_more or not told.has_moved:
        return []
    what = "the adapter that was merged into it" if told.kind == "merged" else "these weights"
    step = [] if told.step == told.steps else ["--step", str(told.step)]
    words = ["zoreward", "replay", "trajectory.safetensors", "--model", one_line(base) or "BASE", *step, *told.combined]
    made = f"The run's `trajectory.safetensors` and the base give {what} back, bit for bit:"
    where = "The file is in the run's folder, and in `replay/` of a repository that `--push-to-hub` made."
    return ["", made, "", f"    {shlex.join(words)} --output FOLDER", "", where]


def _what_it_is(told: Told) -> str:
    made = {"whole": "a whole model", "adapter": "an adapter", "merged": "a model with its adapter merged in"}[
        told.kind
    ]
    if told.has_moved:
        return (
            f"This is {made}, tuned by zoreward with forward passes alone: its weights were moved along random"
            " directions by how well the model scored on an objective. No gradient was taken."
            + (f" They are made of a run's states by `{shlex.join(told.combined)}`." if told.combined else "")
        )
    why = f"none of the {told.step} steps moved one" if told.step else f"none of the {told.steps} steps is in them"
    return f"This is {made} with the weights that a run of zoreward began with: {why}. It is not tuned."


def _head(base: str, told: Told) -> list[str]:
    """The YAML at the top, which the Hub reads."""
    tags = told.metadata.get("tags") or []
    fields: dict[str, Any] = {"library_name": "peft" if told.kind == "adapter" else "transformers"}
    source, _ = parted(base)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists():  # on the Hub a folder means nothing
        fields["base_model"] = source
    fields["tags"] = sorted({"zoreward", "zeroth-order", *([tags] if isinstance(tags, str) else tags)})
    others = {name: value for name, value in told.metadata.items() if name not in ("tags", "model_name") and value}
    return ["---", *(f"{name}: {json.dumps(value)}" for name, value in {**fields, **others}.items()), "---"]


def _table(base: str, header: Mapping[str, Any], told: Told) -> list[tuple[str, str]]:
    method = header.get("method") if isinstance(header.get("method"), dict) else {}
    config = header.get("config") if isinstance(header.get("config"), dict) else {}
    assert isinstance(method, dict) and isinstance(config, dict)
    options = ", ".join(f"{name}={value}" for name, value in method.items() if name not in _TOLD and value)
    rate, schedule = method.get("lr"), config.get("lr_scheduler_type")
    adapter, (source, place) = header.get("adapter"), parted(base)
    found: list[tuple[str, Any]] = [
        ("base", _code(source) if base else "a model that had no name"),
        ("its revision", _code(place["revision"]) if place else ""),
        (
            "its weights",
            f"{header['dtype']}, fingerprint {str(header['fingerprint'])[:16]}…" if "fingerprint" in header else "",
        ),
        ("adapter", _named(adapter) if isinstance(adapter, dict) else ""),
        ("template", _code(config["template"].replace("\n", "\\n")) if config.get("template") else ""),
        ("answers", ", ".join(map(_code, config.get("choices") or ()))),
        ("objective", " ".join([_code(header.get("objective")), _named(header.get("options") or {})]).strip()),
        ("method", f"{_code(method.get('name'))}: {options}" if options else _code(method.get("name"))),
        ("paper", _paper(str(method.get("name")))),
        ("learning rate", f"{rate}, {schedule}" if rate and schedule else rate),
        ("seed", method.get("seed")),
        *told.rows.items(),
        ("steps", told.steps if told.step == told.steps else f"{told.steps}; the weights are those after {told.step}"),
        ("dev score", _scores(told.evaluations)),
        *((name, f"{value:.6g}") for name, value in told.scores.items()),
        ("versions", _named(header.get("versions") or {})),
    ]
    return [(name, _cell(value)) for name, value in found if value not in (None, "")]


def _paper(method: str) -> str:
    """Where a method is from, with a link."""
    from zoreward.methods import METHODS

    source = METHODS[method].source if method in METHODS else ""
    return re.sub(r"arXiv ([\d.]+)", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def _scores(evaluations: Sequence[tuple[int, float]]) -> str:
    if not evaluations:
        return ""
    (first, before), (last, after) = evaluations[0], evaluations[-1]
    best_step, best = max(evaluations, key=lambda one: one[1])
    told = [f"{before:.6g} {'before step 1' if first == 0 else f'after step {first}'}"]
    told += [f"{after:.6g} after step {last}"] if last != first else []
    return ", ".join([*told, f"best {best:.6g} after step {best_step}"])


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _code(value: Any) -> str:
    return f"`{str(value).replace('`', chr(39))}`"


def _cell(value: Any) -> str:
    """A value as a cell of a table may hold it: one line, short, without what would end the cell."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return (text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…").replace("|", "\\|").replace("<", "&lt;")
