"""`--dry-run`: what a run would read, score and need, told before a weight is read; nothing is written."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zoreward.cli.printing import Outcome
from zoreward.data import describe_prompts

if TYPE_CHECKING:
    from zoreward.trainer.planned import Planned

_PROMPTS = 2


def told_of(plan: Planned) -> Outcome:
    """Return what is known of a run: prompts, rows, members, steps, memory, and what would be found before step 1."""
    given, query = plan.given, plan.query
    args, memory = given.args, plan.memory
    rows = len(given.examples) if query.rows == "all" else args.rows_a_step
    steps = args.max_steps if args.max_steps > 0 and args.max_forwards is None else None
    found = ["learning_rate", *([] if given.eps_given else ["eps"])] if given.finds_rate else []
    data: dict[str, Any] = {
        "objective": given.objective.name,
        "prompts": describe_prompts(given.examples, given.tokenizer, _PROMPTS, classes=given.head.kind == "classifier"),
        "rows": len(given.examples),
        "dev_rows": len(given.eval_examples or ()),
        "method": args.method,
        "members": len(query.members),
        "rows_a_step": rows,
        "steps": steps,
        "max_seconds": args.max_seconds,
        "found": found,
        **{name: getattr(args, name) for name in ("eps", "learning_rate") if name not in found},
        "memory": None if memory is None else asdict(memory),
    }
    return Outcome(data, _text(data, str(memory or "not known for such a model or device")))


def _text(data: dict[str, Any], memory: str) -> str:
    steps = "as many as --max-forwards pays"
    if data["steps"] is not None:
        reads = data["steps"] * data["members"] * data["rows_a_step"]
        most = "at most " if data["max_seconds"] else ""
        steps = f"{most}{data['steps']:,}, in which members read {reads:,} rows"
    dev = f", {data['dev_rows']:,} that choose the best step" if data["dev_rows"] else ", none that choose a step"
    numbers = [
        f"{name} {'is found before step 1' if key in data['found'] else f'{data[key]:g}'}"
        for name, key in (("ε", "eps"), ("learning rate", "learning_rate"))
    ]
    seconds = "known once steps are timed; --max-seconds sets it"
    lines = {
        "objective": data["objective"],
        "rows": f"{data['rows']:,} to tune on{dev}",
        "members": f"{data['members']} a step ({data['method']}), each on {data['rows_a_step']:,} rows",
        "steps": steps,
        "numbers": ", ".join(numbers),
        "memory": memory,
        "time": f"at most {data['max_seconds']:g} s of steps" if data["max_seconds"] else seconds,
    }
    width = max(map(len, lines)) + 2
    told = "\n".join(f"{name:{width}}{value}" for name, value in lines.items())
    return f"{data['prompts']}\n\n{told}\n\nThis was a dry run: nothing was written."
