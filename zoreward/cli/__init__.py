"""The command line: one command for each objective, made from the objective's options. Its help imports no torch."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from zoreward.cli.flags import canonical, escape, shortened
from zoreward.cli.listings import add_objectives, show_health, show_objectives, show_tasks
from zoreward.cli.prepare import quiet_deprecations
from zoreward.cli.printing import is_first, nothing_printed, printable_warnings, unexpected
from zoreward.cli.printing import report as print_error  # `report` is a command here, and its module
from zoreward.data import load_task
from zoreward.neighbours.of_launchers import launch_of
from zoreward.neighbours.of_typer import UsageError, print_help, words_to_complete
from zoreward.neighbours.releases import newer_than_tested
from zoreward.records import InputError, ZorewardError
from zoreward.registry import describe_objective, spelled_out

# A command's module has its name, and is imported where the command is used. These have a command for each objective.
_FOR_OBJECTIVES = {
    "tune": "Tune a model on an objective, with forward passes alone.",
    "eval": "Score a model with an objective; nothing is changed.",
}
_OTHERS = {
    "bench": "Compare ways to use a model on a task, tuned and not, in one table.",
    "compare": "Say whether one model's scores of the same rows are better than another's.",
    "influence": "Say which rows would help a model on other rows, and which would harm it.",
    "new-objective": "Write a package that brings an objective of your own, with a test.",
    "quickstart": "Watch a tiny model get better within a minute: no network, no GPU.",
    "report": "Write a page to look at: what became of a run, or how several compare.",
    "replay": "Make the tuned model from a stored run and its base weights, bit for bit.",
    "worker": "Help with a run that listens for workers: tune … --elastic.",
    "win-rate": "Let two models write, and a judge say how often one writes better.",
}
_HELP_FLAGS = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the words behind `zoreward`; by default those of the process.

    Returns:
        0; 2 for what was found before step 1, with nothing written; 1 for a run that failed later; 130 after Ctrl-C.

    >>> main(["--version"])
    zoreward 0.1.0
    0
    """
    if (so_far := words_to_complete()) is not None:
        return complete(so_far)
    words = list(sys.argv[1:] if argv is None else argv)
    if words in ([], ["tune"], ["eval"]):
        words.append("--help")
    try:
        refuse_over_ranks(words)
        words = with_objective(words)
        command = command_for(words)
        # Not standalone: Typer would frame the errors in boxes, and exit by itself.
        # `obj` is what a command finds at the root of its context: here the words as they were typed.
        with quiet_deprecations(), printable_warnings() if is_first() else nothing_printed():
            *names, last = words
            is_help = last in _HELP_FLAGS and all(name[:1] not in ("", "-") for name in names)
            if is_help and print_help(command, ["zoreward", *names]):
                return 0
            return command.main(args=words, prog_name="zoreward", standalone_mode=False, obj=tuple(words)) or 0
    except ZorewardError as error:
        return print_error(error, help_at=words[:2])
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "zoreward"
        return print_error(InputError(error.format_message(), hint=f"`{path} --help` lists what there is"))
    except (KeyboardInterrupt, typer.Abort):  # the latter is Typer's, for the former
        if is_first():
            print("interrupted", file=sys.stderr)
        return 130
    except (Exception, SystemExit) as error:  # a model's code, or an objective's, may raise either
        if words[0].startswith("-") and isinstance(error, SystemExit):  # Typer's, behind --install-completion
            return int(error.code or 0)
        if isinstance(error.__context__, BrokenPipeError):  # `zoreward … | head` has read enough; Typer ends by 1
            return 1
        return print_error(unexpected(error))


def complete(so_far: list[str]) -> int:
    """Print how a command line may go on; a shell shows it. What is wrong in it is told when it is run."""
    words = [*so_far, *_HELP_FLAGS[-1:]]
    if words[0] in _FOR_OBJECTIVES and (len(words) < 3 or words[1].startswith("-")):
        words = [words[0], _HELP_FLAGS[-1]]
    with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stderr(None):
        command_for(words).main(args=so_far, prog_name="zoreward", standalone_mode=False)
    return 0


def refuse_over_ranks(words: list[str]) -> None:
    """Refuse a command that a launcher started several times, where all would do the same.

    Raises:
        InputError: it is another than `tune` and `eval`.
    """
    launch = launch_of()
    if launch is not None and words[0] not in ("tune", "eval"):
        of_bench = f" --jobs {launch.local_size} (each job takes another GPU)" if words[0] == "bench" else ""
        hint = f"Start it alone: zoreward {shlex.join(words)}{of_bench}"
        raise InputError(f"zoreward {words[0]} is one process, and {launch.size} were started", hint=hint)


def with_objective(words: list[str]) -> list[str]:
    """Return the words of a command with the task's objective, where they name a task and no objective.

    `tune` takes what the paper tunes on, `eval` what it reports. An objective and its option in one word, as
    scikit-learn has it, become two.

    >>> with_objective(["eval", "--task", "sst2"]), with_objective(["tune", "f1", "--task", "sst2"])
    (['eval', 'accuracy', '--task', 'sst2'], ['tune', 'f1', '--task', 'sst2'])
    """
    if len(words) < 2 or words[0] not in _FOR_OBJECTIVES:
        return words
    if not words[1].startswith("-"):
        if (meant := spelled_out(words[1])) is None:
            return words
        instead = [meant[0], *(word for name, value in meant[1].items() for word in (f"--{name}", value))]
        print(f"{words[1]} is {shlex.join(instead)}", file=sys.stderr)
        return [words[0], *instead, *words[2:]]
    named = [after for word, after in itertools.pairwise(words) if word == "--task"]
    named += [word.partition("=")[2] for word in words if word.startswith("--task=")]
    if not named:
        return words
    task = load_task(named[0])
    objective = task.train_on or task.objective if words[0] == "tune" else task.objective
    return [words[0], objective, *words[1:]]


def command_for(words: list[str]) -> Any:
    """Return the command line for these words, of which it looks at the first two.

    Of all commands and objectives, only those that are asked for are loaded with their options; the help lists the
    others.
    """
    app = typer.Typer(
        help="Tune Hugging Face language models on whatever can be scored, with forward passes alone.",
        add_completion=words[0].startswith("-") or words_to_complete() is not None,
        context_settings={"help_option_names": list(_HELP_FLAGS)},
        rich_markup_mode="rich",
    )
    app.callback()(_root)
    settings = {"token_normalize_func": canonical}
    short = "-h" in words and "--help" not in words
    for verb, text in _FOR_OBJECTIVES.items():
        group = typer.Typer(help=text, rich_markup_mode="rich", subcommand_metavar="OBJECTIVE [ARGS]...")
        if words[0] == verb:
            name = words[1]
            if name in _HELP_FLAGS:
                add_objectives(group)
            elif name.startswith("-"):
                raise InputError(
                    f"the objective comes before {name}", hint=f"zoreward {verb} OBJECTIVE {' '.join(words[1:3])} …"
                )
            else:
                described = describe_objective(name)
                run = import_module(f"zoreward.cli.{verb}").make_command(name, described)
                more = shortened(run, described.needs) if short else ""
                group.command(name, help=escape(described.help), epilog=more, context_settings=settings)(run)
        app.add_typer(group, name=verb)
    app.command("objectives")(show_objectives)
    app.command("tasks")(show_tasks)
    app.command("doctor")(show_health)
    for name, text in _OTHERS.items():
        run = import_module(f"zoreward.cli.{name.replace('-', '_')}").make_command() if words[0] == name else _root
        more = shortened(run) if short and words[0] == name else ""
        app.command(name, help=text, epilog=more, context_settings=settings)(run)
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from zoreward import __version__

        print(f"zoreward {__version__}")
        if line := newer_than_tested():
            print(line, file=sys.stderr)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass
