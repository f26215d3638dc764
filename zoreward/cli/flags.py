"""The options of the commands, as parameters from which Typer makes flags. Free of torch."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import functools
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from zoreward.cli.printing import Outcome, is_first
from zoreward.config import OBJECTIVE, PANELS, RUN, Common, TuneOptions
from zoreward.data.hub import at_revision
from zoreward.data.reading import read_yaml
from zoreward.neighbours.of_typer import source_of
from zoreward.records import InputError, printable
from zoreward.registry import Objective

_Group = TypeVar("_Group")
# What `-h` shows of a command with more options than so many; of the prompt's what the kind of objective reads.
_SHORT = 20
_OFTEN = set(
    "model data eval_data template chat tune per_device_train_batch_size max_steps max_seconds output resume dry_run "
    "task data_dir method seeds jobs against judge json".split()
)
_OFTEN_FOR = {
    "choices": {"choices", "label"},
    "likelihood": {"answer"},
    "completions": {"prompt", "max_completion_length"},
}
# Keeps an objective's options apart from ours, in Python only: on the command line a flag is a flag.
_PREFIX = "objective_"
# What transformers calls some of our flags. Said in the help's text, not in its narrow column of flags.
_ALIASES = {
    "--max-steps": "--steps",
    "--per-device-train-batch-size": "--batch-size",
    "--learning-rate": "--lr",
    "--eval-steps": "--eval-every",
    "--output-dir": "--output",
    "--max-completion-length": "--max-new-tokens",
    "--per-device-eval-batch-size": "--eval-batch-size",
}

# Of whole numbers, unless an option has its own bound; beyond it torch, and Python's clock, end in tracebacks.
_MOST = 2**31 - 1
# The smallest and the largest float32 that have all their digits.
SMALLEST, LARGEST = 2.0**-126, 3.4028234663852886e38


def option(name: str, kind: Any, default: Any, about: Mapping[str, Any]) -> inspect.Parameter:
    """Return a parameter that Typer makes an option of.

    Args:
        name: of the parameter.
        kind: its type.
        default: its value where it is not given; MISSING: it must be given.
        about: as for `zoreward.config.setting`. A whole number is at most 2^31 − 1 unless it has a bound of its own,
            another number is what float32 can hold; where `most` is None, any number will do.
    """
    if "argument" in about:
        info = typer.Argument(help=about["help"], metavar=about["argument"], show_default=False)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])
    flag = about.get("flag") or _flag(name)
    others = [alias for alias, written in _ALIASES.items() if written == flag]
    text = f"{about['help']} Also {others[0]}." if others else about["help"]
    most = about.get("most", _MOST)
    # Not Typer's own min: "<int range> [x>=1]" in the help leaves little room for the help itself.
    is_bounded = most is not None and _without_none(kind) in (int, float)
    shown_default = printable(str(default))
    info = typer.Option(
        *flag.split(),
        help=escape(text),
        rich_help_panel=about["panel"],
        callback=_within(about.get("least"), most) if is_bounded else None,
        show_default=True if shown_default == str(default) else shown_default,
    )
    default = inspect.Parameter.empty if default is dataclasses.MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _within(least: float | None, most: float) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value is None:
            return value
        if isinstance(value, float) and not abs(value) <= LARGEST:
            raise typer.BadParameter(f"{value:g} is no number that float32 can hold.")
        if isinstance(value, float) and 0 < abs(value) < SMALLEST:
            raise typer.BadParameter(f"{value:g} is nothing in float32.")
        if least is not None and value < least:
            raise typer.BadParameter(f"{value} is less than {least}.")
        if isinstance(value, int) and value > most:
            raise typer.BadParameter(f"{value} is more than {most:,}.")
        return value

    return check


def canonical(word: str) -> str:
    """Return the name of a flag for its alias, both without dashes in front, and every other word as it is.

    >>> canonical("learning-rate"), canonical("template")
    ('lr', 'template')
    """
    return _ALIASES.get(f"--{word}", f"--{word}")[2:]


def shortened(run: Callable[..., Any], needs: str = "") -> str:
    """Hide what is seldom wanted from the help of a command, and return the line that says where it stands.

    An objective's own options stay, and of the prompt's those that its kind of objective has a use for.

    Args:
        run: the function of the command.
        needs: of the objective, where the command has one.
    """
    parameters = list(inspect.signature(run).parameters.values())[1:]  # behind the context
    named = [one for one in parameters if not one.name.startswith(_PREFIX)]
    if len(named) <= _SHORT:
        return ""
    shown = _OFTEN | _OFTEN_FOR.get(needs, set().union(*_OFTEN_FOR.values()))
    rare = [one for one in named if one.name not in shown]
    for parameter in rare:
        parameter.annotation.__metadata__[0].hidden = True
    return f"--help lists {len(rare)} more options."


def command(run: Callable[[typer.Context, _Group], Outcome | int], group: type[_Group]) -> Callable[..., int]:
    """Return the function that Typer makes a command of: its flags are a group of options, which `run` is given.

    Args:
        run: returns what it prints, or the exit code of a run that failed.
        group: of options, `json` among them.
    """
    return _for_typer(lambda context, values: run(context, _group_of(group, context, values)), _parameters_of(group))


def objective_command(
    run: Callable[[str, typer.Context, Any, dict[str, Any]], Outcome | int],
    group: Any,
    verb: str,
    source: str,
    objective: Objective,
) -> Callable[..., int]:
    """Return the function of a command for one objective, which has the objective's own options beside a group.

    Args:
        run: is called with the source, the context, the options of the group, and what the objective's flags hold.
        group: of options.
        verb: `tune` or `eval`.
        source: what names the objective.
        objective: with its options.
    """
    parameters = _parameters_of(group)
    parameters += _objective_options(objective, parameters)
    parameters.append(_config_option(verb, source, parameters))

    def with_group(context: typer.Context, values: dict[str, Any]) -> Outcome | int:
        options = _group_of(group, context, values)
        prefixed = {name: value for name, value in values.items() if name.startswith(_PREFIX)}
        return run(source, context, options, {name.removeprefix(_PREFIX): v for name, v in prefixed.items()})

    return _for_typer(with_group, parameters)


def _group_of(group: type[_Group], context: typer.Context, values: dict[str, Any]) -> _Group:
    """The options of a group. In texts that were typed, and may be of several lines, backslash and n are a break."""
    given = {field.name: values[field.name] for field in dataclasses.fields(group)}  # type: ignore[arg-type]
    for field in dataclasses.fields(group):  # type: ignore[arg-type]
        if field.metadata.get("breaks") and source_of(context, field.name) == "COMMANDLINE":
            value = given[field.name]
            given[field.name] = [with_breaks(one) for one in value] if isinstance(value, list) else with_breaks(value)
    if given.get("model_revision") is not None and given.get("model") is not None:
        given |= {"model": at_revision(given["model"], given["model_revision"]), "model_revision": None}
    return group(**given)


def with_breaks(typed: str) -> str:
    r"""Return a text in which backslash and n, as one types them in a shell, are a line break; behind another
    backslash they stay what they are.

    >>> with_breaks(r"{message}\nLabel:"), with_breaks(r"a \\nabla")
    ('{message}\nLabel:', 'a \\nabla')
    """
    return re.sub(r"(\\?)\\n", lambda found: "\\n" if found[1] else "\n", typed)


def _for_typer(
    run: Callable[[typer.Context, dict[str, Any]], Outcome | int], parameters: Iterable[inspect.Parameter]
) -> Callable[..., int]:
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    signature = inspect.Signature([context, *parameters])

    def callback(context: typer.Context, **values: Any) -> int:
        try:
            # What a model, a tokenizer or an objective prints is not the result.
            with contextlib.redirect_stdout(sys.stderr if is_first() else sys.stdout):
                outcome = run(context, values)
        except KeyboardInterrupt:  # of which some versions of Typer say nothing
            if is_first():
                print("interrupted", file=sys.stderr)
            return 130
        if isinstance(outcome, Outcome):
            outcome.print(as_json=values["json"])
            return outcome.code
        return outcome

    callback.__signature__ = signature  # type: ignore[attr-defined]
    callback.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return callback


def _parameters_of(group: type) -> list[inspect.Parameter]:
    """The options of a group, panel by panel."""
    kinds = _kinds_of(group)
    ordered = sorted(dataclasses.fields(group), key=lambda field: PANELS.index(field.metadata["panel"]))
    # Pairs are written as JSON.
    written = {field.name: str | None if _takes_pairs(field.name) else kinds[field.name] for field in ordered}
    return [option(field.name, written[field.name], field.default, field.metadata) for field in ordered]


@functools.cache
def _kinds_of(group: type) -> dict[str, Any]:
    """The types of the fields of a group of options, by name."""
    return typing.get_type_hints(group)


def _takes_pairs(name: str) -> bool:
    """Whether an option takes a dict."""
    return any(typing.get_origin(kind) is dict for kind in typing.get_args(_kinds_of(TuneOptions).get(name)))


def _objective_options(objective: Objective, parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return the objective's options as options of its command, beside `parameters`.

    Those of a type that cannot be written on a command line (a function, a dict, choices with control characters) are
    left out and keep their default.

    Raises:
        InputError: two options would have one flag.
    """
    taken = {"--help", "--objective", *_ALIASES}
    for parameter in parameters:
        taken |= {_flag_of(parameter), _flag(parameter.name)}
    options = []
    for described in objective.options:
        if not _is_writable(described.type):
            continue
        flag = _flag(described.name)
        if flag in taken:
            what = f"objective {objective.name!r} has an option {described.name!r}"
            message = f"{what}, but {flag} is one of zoreward's own"
            raise InputError(message, hint="rename the parameter")
        written = f"{flag}/--no-{flag[2:]}" if _without_none(described.type) is bool else flag
        about = {"help": described.help, "panel": OBJECTIVE, "flag": written, "most": None}
        options.append(option(_PREFIX + described.name, described.type, described.default, about))
    return options


def given_options(context: typer.Context, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return which of the objective's options are given, on the command line or by --config."""
    said = ("COMMANDLINE", "DEFAULT_MAP")  # the latter by --config
    return {name: value for name, value in flags.items() if source_of(context, _PREFIX + name) in said}


def resolved(objective: str, options: Common, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options under their own names, in plain types: what `config.yaml` holds.

    Args:
        objective: what names it.
        options: of the command.
        own: those of the objective that were given: others stay with its defaults, and out of the file.
    """
    names = [field.name for field in dataclasses.fields(options) if field.metadata.get("kept", True)]
    return {"objective": objective, **_plain({name: getattr(options, name) for name in names} | dict(own))}


def _config_option(verb: str, source: str, parameters: Iterable[inspect.Parameter]) -> inspect.Parameter:
    """Return the option --config, whose file gives the other `parameters` other defaults."""
    known: dict[str, str] = {}
    kinds: dict[str, Any] = {}
    for parameter in parameters:
        kinds[parameter.name] = _without_none(typing.get_args(parameter.annotation)[0])
        flag = _flag_of(parameter).partition("/")[0]
        others = [alias for alias, written in _ALIASES.items() if written == flag]
        for spelling in (
            parameter.name.removeprefix(_PREFIX),
            *(word[2:].replace("-", "_") for word in (flag, *others)),
        ):
            known[spelling] = parameter.name

    def read(context: typer.Context, path: str | None) -> str | None:
        if path is not None:
            given = _checked(_defaults(path, verb, source, known), kinds, path)
            context.default_map = {**(context.default_map or {}), **given}
        return path

    help = "A YAML file of options, as config.yaml of a run; the command line wins."
    info = typer.Option("--config", help=help, rich_help_panel=RUN, callback=read, is_eager=True)
    return inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, info]
    )


def _defaults(path: str, verb: str, source: str, known: dict[str, str]) -> dict[str, Any]:
    """The options in a YAML file, by the names of our parameters."""
    given = read_yaml(Path(path), "--config takes a YAML file")
    if not isinstance(given, dict):
        raise InputError(f"{path} holds no options", hint="write one option a line, name: value")
    if (other := given.pop("objective", source)) != source:
        raise InputError(f"{path} is for the objective {other!r}", hint=f"zoreward {verb} {other} --config {path}")
    defaults: dict[str, Any] = {}
    for key, value in given.items():
        name = known.get(str(key).replace("-", "_"))
        if name is None:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"`zoreward {verb} {source} --help` lists what there is"
            raise InputError(f"{path}: there is no option {key!r}", hint=hint)
        if name in defaults:
            raise InputError(f"{path} gives {key!r} twice, under two names", hint="keep one of them")
        if value is not None:
            defaults[name] = json.dumps(value) if isinstance(value, dict) and _takes_pairs(name) else value
    return defaults


def _checked(given: dict[str, Any], kinds: dict[str, Any], path: str) -> dict[str, Any]:
    """Options of a file, if none has a value that Typer would take for another: it takes true for 1, a list for a text,
    and in older releases the whole part of a fraction."""
    for name, value in given.items():
        wanted = typing.get_origin(kinds[name]) or kinds[name]
        if isinstance(value, bool) and wanted is typing.Literal and "on" in typing.get_args(kinds[name]):
            given[name] = value = "on" if value else "off"  # YAML takes these words for true and false
        values = "a list of texts or numbers: [a, b]" if wanted is list else "one number or text"
        for kind, what in ((bool, "true or false"), (list, "a list"), (dict, "pairs")):
            if isinstance(value, kind) and wanted is not kind:
                key = name.removeprefix(_PREFIX)
                raise InputError(f"{path}: {key} is {what}: {value!r:.80}", hint=f"write {values}")
        if wanted is int and isinstance(value, float):
            raise InputError(f"{path}: {name.removeprefix(_PREFIX)} is {value!r}", hint="write a whole number")
        if wanted is list and any(isinstance(item, bool | list | dict) for item in value if isinstance(value, list)):
            raise InputError(f"{path}: {name} is {value!r:.80}", hint=f"write {values}")
    return given


def _flag_of(parameter: inspect.Parameter) -> str:
    """Return how a parameter is written on the command line.

    >>> _flag_of(option("max_steps", int, 1000, {"help": "Steps.", "flag": "--steps", "panel": RUN}))
    '--steps'
    """
    # Typer takes the first flag for the default of an option that stands in Annotated.
    return str(parameter.annotation.__metadata__[0].default)


def _flag(name: str) -> str:
    return f"--{name.strip('_').replace('_', '-')}"


def escape(text: str) -> str:
    r"""Keep a text from being read as Rich's markup, and a terminal from obeying it.

    >>> escape("a [bold] word"), escape("\x1b[1m")
    ('a \\[bold] word', '\\x1b[1m')
    """
    from rich.markup import escape as without_markup

    return without_markup(printable(text))


def _is_writable(kind: Any) -> bool:
    kind = _without_none(kind)
    if typing.get_origin(kind) is list:
        return all(_is_writable(item) and typing.get_origin(item) is not list for item in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return all(isinstance(value, str) and value == printable(value) for value in typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return all(str(choice.value) == printable(str(choice.value)) for choice in kind)
    return isinstance(kind, type) and kind in (str, int, float, bool, Path)


def _without_none(kind: Any) -> Any:
    """Return `X` for `X | None`, and everything else as it is."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    others = [item for item in typing.get_args(kind) if item is not types.NoneType]
    return others[0] if len(others) == 1 else kind


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    return str(value) if isinstance(value, Path) else value
