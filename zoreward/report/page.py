"""The page of one run, `report.html`: what was tuned on what, what became of it, and how to have it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from zoreward.config import DEFAULTED, TuneOptions
from zoreward.data.hub import parted
from zoreward.journal.lines import LARGEST_SCORE
from zoreward.journal.lines import number as is_number
from zoreward.report.charts import Curve, Mark, Point, chart, smoothed, thinned
from zoreward.report.facts import DevScore, Facts, Written
from zoreward.report.pieces import card, code, command, number, pairs, save_page, seconds, section, short, table, text

REPORT_NAME = "report.html"
# Options of a method that have a line of their own, or are not the user's.
_OWN_LINE = ("name", "seed", "lr", "eps", "rows")
_USUAL = {"refresh": 1, "block_every": 1, "floor": 1e-4, "distribution": "normal", "window": 10}
_SECRET = re.compile(r"(token|password|secret|key)$", re.IGNORECASE)
# What a trainer saves by `save_model`, in the run's folder or a folder in it.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
# What ended a run before its last step.
_STOPPED = {
    "patience": "stopped: the dev score got no better",
    "max_seconds": "stopped: its seconds were over",
    "max_forwards": "stopped: its forward passes were spent",
    "max_rewinds": "stopped: the dev score fell too often",
    "kl": "stopped: the model had moved too far",
    "silence": "stopped: no step moved anything",
}


def write_report(path: str | Path, facts: Facts) -> None:
    """Write the page of a run.

    Args:
        path: of the page.
        facts: of the run.

    Raises:
        InputError: another file has its name.
        OSError: it cannot be written.
    """
    save_page(path, f"{facts.objective} · {facts.name}", body_of(facts))


def body_of(facts: Facts) -> str:
    """Return what stands on the page of a run, as HTML."""
    return "".join(
        [
            _head(facts),
            section("Score", _score_chart(facts), _rewinds(facts)),
            section("On the way", _small_charts(facts)),
            section("Answers to the dev rows", _confusions(facts)),
            section("Texts, before and after", _texts(facts)),
            section("What was tuned on what", _setup(facts)),
            section("Dev scores", _dev_table(facts)),
            section("Again", _commands(facts)),
            "<footer>Written by zoreward from the files of the run. Nothing is loaded, and no script runs.</footer>",
        ]
    )


def _head(facts: Facts) -> str:
    model = Path(facts.model).name or "A model"
    badges = "".join(f'<span class="badge {style}">{text(told)}</span>' for told, style in _state(facts))
    cards = "".join(_cards(facts))
    what = f"<h1>{text(model)}, tuned on {text(facts.objective)}</h1><p class='lead'>{code(facts.path)}</p>"
    return f'<header>{what}{badges}<div class="cards">{cards}</div></header>'


def _state(facts: Facts) -> Iterator[tuple[str, str]]:
    """What is to be known at a glance, each with its colour."""
    steps, most = len(facts.steps), facts.session.get("max_steps")
    if facts.kept is not None:
        yield "finished", "good"
        yield f"step {facts.kept:,} is kept" if facts.kept else "the base is kept: no step scored better", ""
    elif not steps:
        yield "no steps yet", "bad"
    elif type(most) is int and steps < most:
        yield f"not finished: {steps:,} of {most:,} steps", "bad"
    elif any(Path(facts.path, where, name).exists() for where in ("", "model") for name in _WEIGHTS):
        yield "finished", "good"
    else:
        yield "no model is saved here", "bad"
    if (stopped := facts.findings.get("stopped")) is not None:
        yield _STOPPED.get(stopped, f"stopped: {stopped}"), ""
    if facts.rewinds:
        yield "went back once" if len(facts.rewinds) == 1 else f"went back {len(facts.rewinds)} times", ""


def _cards(facts: Facts) -> Iterator[str]:
    first, shown, n = facts.first, facts.shown, len(facts.steps)
    if first is not None:
        yield card("dev score before" if first.step == 0 else "first dev score", _with_error(first), _after(first.step))
    if first is not None and shown is not None and shown is not first:
        gain = shown.score - first.score
        style = "good" if gain > 0 else "bad" if gain < 0 else ""
        told = f"{'+' if gain > 0 else ''}{short(gain)}, {_after(shown.step)}"
        yield card(
            "dev score, kept" if facts.kept == shown.step else "dev score, best", _with_error(shown), told, style
        )
    if is_number(facts.findings.get("test"), LARGEST_SCORE):
        rows = facts.findings.get("test_rows")
        of = f"{rows:,} rows, {facts.findings.get('test_objective')}" if type(rows) is int else ""
        yield card("test score", short(facts.findings["test"]), of)
    silent = f"{facts.n_silent:,} silent ({facts.n_silent / n:.1%})" if facts.n_silent else "none silent"
    yield card("steps", f"{n:,}", silent if n else "")
    if facts.seconds is not None:
        told = f"{facts.seconds / n:.3g} s a step, with dev scores; without loading and saving" if n else ""
        yield card("time", seconds(facts.seconds), told)
    if facts.passes:
        yield card("forward passes", f"{facts.passes:,}", "in steps: a member on a batch each")
    if is_number(peak := facts.findings.get("peak_gb")):
        yield card("memory", f"{peak:.3g} GB", "at most, on the GPU")


def _after(step: int) -> str:
    return f"after step {step:,}" if step else "before step 1"


def _with_error(dev: DevScore) -> str:
    return short(dev.score) + (f" <small>± {dev.error:.2g}</small>" if dev.error else "")


def _score_chart(facts: Facts) -> str:
    batches = [(float(place), step.score) for place, step in enumerate(facts.steps, 1) if step.score is not None]
    width, curves = max(5, len(batches) // 10), []
    if batches:
        curves = [Curve("batches", [thinned(batches)], "batch", "dots", counts=not facts.dev)]
    if len(batches) > width:
        ends = [0, *(rewind.step for rewind in facts.rewinds), len(facts.steps)]
        spans = [[one for one in batches if low < one[0] <= high] for low, high in pairwise(ends)]
        curves.append(
            Curve(f"mean of {width} steps", [smoothed(span, width) for span in spans], "batch", counts=not facts.dev)
        )
    curves += dev_curves(facts, "dev rows ± standard error", "c0")
    marks = [Mark(rewind.step, f"↺ {rewind.to}", "rewind") for rewind in facts.rewinds]
    kept = next(((one.step, one.score) for one in reversed(facts.dev) if one.step == facts.kept), None)
    return chart(curves, title=f"{facts.objective} over steps", marks=marks, ring=kept)


def dev_curves(facts: Facts, name: str, style: str) -> list[Curve]:
    """Return the curves of a run's dev scores: those on the way to its last weights, pale what was taken back.

    Args:
        facts: of the run.
        name: for the legend.
        style: the class of the colour.
    """
    live: list[list[Point]] = [[]]
    back: list[list[Point]] = []
    scores = {one.step: one.score for one in facts.dev}
    turns = {rewind.step: rewind for rewind in facts.rewinds}
    before: Point | None = None
    for one in facts.dev:
        point = (float(one.step), one.score)
        if before is not None and not _stays(facts, one.step):
            back.append([before, point])
        elif _stays(facts, one.step):
            live[-1].append(point)
        before = point
        if (turn := turns.get(one.step)) is not None and turn.to in scores:
            before = (float(one.step), scores[turn.to])
            live.append([before])
    points = [(float(one.step), one.score) for one in facts.dev]
    stays = [_stays(facts, one.step) for one in facts.dev]
    errors = [one.error for one in facts.dev]
    found = [Curve("", back, f"{style} back", counts=False)] if back else []
    if points:
        found.append(Curve(name, live, style))
        for keep, more in ((False, " back"), (True, "")):
            chosen = [place for place, stay in enumerate(stays) if stay is keep]
            pieces = [[points[place] for place in chosen]]
            found.append(Curve("", pieces, style + more, "marks", [[errors[place] for place in chosen]], counts=keep))
    return found


def _stays(facts: Facts, step: int) -> bool:
    return all(step <= rewind.to or step > rewind.step for rewind in facts.rewinds)


def _rewinds(facts: Facts) -> str:
    told = "; ".join(
        f"after step {rewind.step} back to {rewind.to}, on with {rewind.rate:.3g} times the learning rate"
        for rewind in facts.rewinds
    )
    return f'<p class="soft">The dev score fell: {text(told)}. What was taken back is pale.</p>' if told else ""


def _small_charts(facts: Facts) -> str:
    steps = list(enumerate(facts.steps, 1))
    spread = [(float(place), step.spread) for place, step in steps if step.spread is not None]
    silent = [(float(place), float(step.is_silent)) for place, step in steps]
    rates = [(float(place), step.lr) for place, step in steps]
    width = max(5, len(steps) // 10)
    made = []
    if spread:
        of_spread = [Curve("", [thinned(spread)], "batch", "dots"), Curve("", [smoothed(spread, width)], "c3")]
        made.append(chart(of_spread, title="spread: standard deviation between members", height=150))
    if facts.n_silent:
        title = f"silent steps, share of the last {width}"
        made.append(chart([Curve("", [smoothed(silent, width)], "c1")], title=title, height=150))
    if len({rate for _, rate in rates}) > 1:
        made.append(chart([Curve("", [thinned(rates)], "c4")], title="learning rate", height=150))
    names = dict.fromkeys(name for one in facts.dev for name in one.metrics)
    for name in list(names)[:12]:
        points = [(float(one.step), value) for one in facts.dev if (value := one.metrics.get(name)) is not None]
        curves = [Curve("", [points], "c2"), Curve("", [points], "c2", "marks", [[None] * len(points)])]
        made.append(chart(curves, title=f"dev rows: {_METRICS.get(name, name)}", height=150) if len(points) > 1 else "")
    shown = "".join(made)
    return f'<div class="small">{shown}</div>{_words(facts, bool(spread))}' if shown else ""


def _words(facts: Facts, has_spread: bool) -> str:
    """What the words of the charts and tables mean, a line each, of those that occur."""
    names = {name for one in facts.dev for name in one.metrics}
    told = {
        "spread": "how far the members of a step differ: the standard deviation of their scores. A step learns from it."
        if has_spread
        else "",
        "silent step": "its members scored alike, or one had no score, so it moved no weight."
        if facts.n_silent
        else "",
        "metric/NAME": "what was measured on the dev rows beside the score: another objective (--metric), or what the "
        "objective logs. Nothing is tuned or chosen by it."
        if any(name.startswith("metric/") for name in names)
        else "",
        "KL": "how far the model's next tokens have moved from those of the base, over texts that it writes."
        if "kl" in names
        else "",
        "distinct-2": "the share of pairs of tokens next to each other that differ; it falls where texts become alike."
        if "distinct_2" in names
        else "",
    }
    return f"<br>{pairs((name, text(line)) for name, line in told.items() if line)}"


_METRICS = {
    "kl": "KL to the base, nats a token",
    "moved": "‖Δθ‖ / ‖θ‖",
    "length": "length, tokens",
    "distinct_2": "distinct-2",
}


def _confusions(facts: Facts) -> str:
    tables = []
    for title, dev in _before_and_after(facts, "confusion"):
        found = _checked_confusion(dev.answers)
        if found is not None:
            tables.append(f"<div><h3>{text(title)}</h3>{_confusion(*found)}</div>")
    told = '<p class="soft">A row is the right answer, a column what the model gave.</p>' if tables else ""
    return f'{told}<div class="two">{"".join(tables)}</div>' if tables else ""


def _checked_confusion(answers: Mapping[str, Any]) -> tuple[list[str], list[list[int]]] | None:
    choices, counts = answers.get("choices"), answers.get("confusion")
    if not (isinstance(choices, list) and isinstance(counts, list) and len(choices) == len(counts) > 1):
        return None
    rows = [row for row in counts if isinstance(row, list) and len(row) == len(choices)]
    if len(rows) != len(choices) or not all(type(count) is int and count >= 0 for row in rows for count in row):
        return None
    return [str(choice) for choice in choices], rows


def _confusion(choices: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Counts, darker where more of a row's answers are; and behind them what follows for each answer."""
    rows = []
    for place, (choice, row) in enumerate(zip(choices, counts, strict=True)):
        total, given = sum(row), sum(other[place] for other in counts)
        cells = [
            f'<span style="background:rgba(var(--heat),{0.55 * count / max(total, 1):.2f})">{count:,}</span>'
            for count in row
        ]
        recall = row[place] / total if total else None
        precision = row[place] / given if given else None
        f1 = 2 * row[place] / (total + given) if total + given else None
        rows.append([text(choice.strip()), *cells, *(_percent(one) for one in (precision, recall, f1))])
    heads = ["", *(text(choice.strip()) for choice in choices), "precision", "recall", "F1"]
    return table(heads, rows, style="confusion")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _before_and_after(facts: Facts, name: str) -> Iterator[tuple[str, DevScore]]:
    """The first dev score and that of the kept weights, where their answers are known."""
    first, shown = facts.first, facts.shown
    if first is not None and first.answers.get(name):
        yield "before" if first.step == 0 else f"after step {first.step}", first
    if shown is not None and shown is not first and shown.answers.get(name):
        yield f"after step {shown.step}", shown


def _texts(facts: Facts) -> str:
    sides = [
        (title, [one for one in dev.answers["texts"] if isinstance(one, dict)])
        for title, dev in _before_and_after(facts, "texts")
        if isinstance(dev.answers["texts"], list)
    ]
    what = "The first dev rows."
    if not sides:
        sides = [_side(one) for one in (facts.before, facts.after) if one is not None]
        what = "What the best member of a step wrote for rows of its batch."
    if not sides:
        return ""
    boxes = []
    for rows in zip(*(rows for _, rows in sides), strict=False):
        same = len({str(row.get("prompt")) for row in rows}) == 1
        head = f"<p>{text(rows[0].get('prompt'))}</p>" if same else ""
        cells = "".join(_written(title, row, same) for (title, _), row in zip(sides, rows, strict=True))
        boxes.append(f'<div class="text">{head}<div class="two">{cells}</div></div>')
    return f'<p class="soft">{what}</p>{"".join(boxes)}'


def _side(written: Written) -> tuple[str, list[Any]]:
    return f"in step {written.step + 1}", list(written.rows)


def _written(title: str, row: Mapping[str, Any], same: bool) -> str:
    worth = ""
    for name, what in (("score", "score"), ("mean", "mean score of what this member wrote")):
        if not worth and is_number(row.get(name), LARGEST_SCORE):
            worth = f", {what} {number(float(row[name]))}"
    prompt = "" if same else f"<small>{text(row.get('prompt'))}</small>"
    return f"<div><small>{text(title)}{worth}</small>{prompt}{text(row.get('completion'))}</div>"


def _setup(facts: Facts) -> str:
    header, session = facts.header, facts.session
    method, config = _dict(header.get("method")), _dict(header.get("config"))
    options = {
        name: value for name, value in method.items() if value and name not in _OWN_LINE and value != _USUAL.get(name)
    }
    tensors = len(_dict(header.get("streams")))
    tuned = f"{tensors:,} tensors"
    if type(session.get("tuned")) is int and type(session.get("weights")) is int:
        tuned = f"{session['tuned']:,} of {session['weights']:,} weights, in {tuned}"
    rows = [(str(name), text(value)) for name, value in _dict(session.get("rows")).items()]
    fingerprint = str(header.get("fingerprint") or "")[:16]
    left = [
        ("model", code(facts.model) if facts.model else "one without a name"),
        ("class", code(session["model_class"]) if session.get("model_class") else ""),
        ("its weights", text(f"{header.get('dtype')}, fingerprint {fingerprint}…")),
        ("tuned", text(tuned)),
        ("adapter", text(_named(_dict(header.get("adapter"))))),
        ("objective", " ".join([code(facts.objective), text(_named(_dict(header.get("options"))))])),
        *rows,
        ("rows of a step", text(method.get("rows") or "")),
    ]
    right = [
        ("method", code(method.get("name"))),
        ("its options", text(_named(options))),
        ("ε", text(method.get("eps", ""))),
        ("learning rate", text(f"{method.get('lr')}, {config.get('lr_scheduler_type', 'constant')}")),
        ("found", text(str(session.get("found") or "").removeprefix("found: "))),
        ("seed", text(method.get("seed", ""))),
        ("device", text(session.get("device") or "")),
        ("versions", text(_named(_dict(header.get("versions"))))),
    ]
    given = pairs([(name, code(masked(name, value))) for name, value in _given(facts).items()])
    more = f"<details><summary>the options that were given</summary>{given}</details>" if given != pairs(()) else ""
    return f'<div class="two">{pairs(left)}{pairs(right)}</div><br>{more}'


# What the command line gives a trainer, or what follows from other options; what a method fills in stands by itself.
_BY_ITSELF = ("disable_tqdm", "do_eval", "eval_strategy", "load_best_model_at_end", "learning_rate", *DEFAULTED)


def _given(facts: Facts) -> Mapping[str, Any]:
    """The options of a run that were typed; where its command is not known, those that differ from their default."""
    config, said = _dict(facts.header.get("config")), facts.session.get("command")
    differ = {name: value for name, value in config.items() if name not in _BY_ITSELF}
    try:
        words = shlex.split(said) if isinstance(said, str) else []
    except ValueError:  # of a file that somebody wrote by hand
        words = []
    typed = {word.partition("=")[0] for word in words}
    if not words or "--config" in typed:
        return differ
    known = {option.name: str(option.metadata.get("flag") or "") for option in fields(TuneOptions)}
    flags = {name: {f"--{name.replace('_', '-')}", *known.get(name, "").split()} for name in differ}
    named = {word.partition("=")[0] for before, word in pairwise(words) if before == "--set"}
    return {name: value for name, value in differ.items() if name in named or flags[name] & typed}


def masked(name: str, value: Any) -> Any:
    """Return the value of an option, but not that of a secret."""
    return "…" if _SECRET.search(name) else value


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={masked(name, value)}" for name, value in values.items())


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _dev_table(facts: Facts) -> str:
    if not facts.dev:
        return ""
    names = list(dict.fromkeys(name for one in facts.dev for name in one.metrics))
    shown = facts.shown
    rows = []
    for one in facts.dev:
        step = (
            f'<span class="now">{one.step:,}, kept</span>'
            if facts.kept == one.step and one is shown
            else f"{one.step:,}"
        )
        rows.append([step, number(one.score), number(one.error), *(number(one.metrics.get(name)) for name in names)])
    heads = ["after step", "score", "standard error", *(text(_METRICS.get(name, name)) for name in names)]
    return table(heads, rows, style="numbers")


def _commands(facts: Facts) -> str:
    folder, model = shlex.quote(facts.path), facts.model or "BASE"
    said = facts.session.get("command")
    parts = []
    if isinstance(said, str) and said:
        parts += ["<h3>The command</h3>", command(said)]
        if facts.kept is None:
            parts += ["<h3>Go on with it</h3>", command(f"{said} --resume")]
    step = "" if facts.kept in (None, len(facts.steps)) else f" --step {facts.kept}"
    replay = f"zoreward replay {folder} --model {shlex.quote(model)}{step} --output tuned"
    parts += ["<h3>The tuned weights, bit for bit, from the base and the journal</h3>", command(replay)]
    if facts.kept is not None:
        parts += ["<h3>The model</h3>", command(_use(facts, model))]
    return "".join(parts)


def _use(facts: Facts, model: str) -> str:
    """Python that loads what was saved."""
    name, folder = str(facts.session.get("model_class") or "AutoModelForCausalLM"), str(Path(facts.path, "model"))
    lines = [f"from transformers import {name}, AutoTokenizer", ""]
    is_adapter = facts.session.get("adapter", "adapter" in facts.header)
    if is_adapter and not _dict(facts.header.get("config")).get("merge"):
        lines = [f"from transformers import {name}, AutoTokenizer", "from peft import PeftModel", ""]
        source, place = parted(model)
        call = ", ".join([repr(source), *(f"{key}={value!r}" for key, value in place.items())])
        lines += [f"base = {name}.from_pretrained({call})", f"model = PeftModel.from_pretrained(base, {folder!r})"]
    else:
        lines += [f"model = {name}.from_pretrained({folder!r})"]
    return "\n".join([*lines, f"tokenizer = AutoTokenizer.from_pretrained({folder!r})"])
