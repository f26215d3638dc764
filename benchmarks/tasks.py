"""docs/tasks.md, from the tasks themselves: python benchmarks/tasks.py > docs/tasks.md"""

from __future__ import annotations

from zoreward.data import Task, list_tasks
from zoreward.data.rows import PUBLISHED_SEEDS
from zoreward.data.templates import FILTERS

HEAD = """# Tasks

<!-- Made by `python benchmarks/tasks.py > docs/tasks.md`; change zoreward/data/tasks/ instead. -->

```console
$ zoreward tune --task sst2 --model facebook/opt-125m --lr 1e-6 --eval-every 500 --output runs/sst2
$ zoreward eval --task sst2 --model facebook/opt-125m --shots 32
$ zoreward tune token-f1 --task squad --model facebook/opt-1.3b --output runs/squad
```

`--task` sets data, prompt, answers, splits and numbers of rows. Where no objective is named, `tune` takes what the
paper tunes on and `eval` what it reports. Everything else that is given wins: `--template`, `--choice`, `--label`,
`--config`, …

- `--data FILE` replaces the dataset of the Hub; the file has the Hub's columns. Its rows are taken as they are, unless
  `--train-rows`, `--dev-rows`, `--test-rows` or `--k-shot` draw from them.
- `--bare` leaves out the prompt: the columns alone, then the answers. What a prompt is worth is the difference.
- `zoreward eval --task sst2 --calibrate` takes from each answer's log-probability what it has behind a prompt without
  content: the task's, or "N/A" in every column of another template. Sums over an answer's tokens, not means.
- `zoreward tasks` lists the tasks, `--json` with all that they say; `--show-prompts` prints what a model will read.

## Rows

Rows that choose are held out of those to tune on; the other split is the test. `tune` scores the dev rows before
step 1, some ten times in the run (or every `--eval-every` steps) and at the end, by the objective that is tuned on;
the best of these steps is kept (`--keep last`: the last). It scores the test rows once, at the end and with the model
that is kept, by what the task reports (`test`); they choose nothing, and are the same for every `--split-seed`.

| | to tune on | dev | test |
|---|---|---|---|
"""

SPLITS = """
`--k-shot K` draws K rows of each class to tune on and K that choose; published seeds are {seeds} (`--split-seed`).
The draws are those of the released code (NumPy's legacy generator, which never changes): the same rows as there, as
far as the dataset on the Hub has kept its order. Where a dataset has fewer rows, there are fewer to tune on (54 for
WSC, as in the released code); `tune` says how many. With `--data` alone, `--test-rows` are held out of it too.

"""

OWN = """## A task of your own

A YAML file, `--task my.yaml`. `template` and `objective` are needed; the other keys are those of the options, and

| key | is |
|---|---|
| `data`, `data_config`, `revision` | a dataset on the Hub, or a file |
| `splits` | its splits: `{train: …, dev: …, test: …}`; without dev, dev rows are held out of train |
| `rows` | how many: `{train: …, dev: …, test: …}`, or `{k_shot: …, test: …}` |
| `drop` | rows to leave out: `{label: [-1]}` |
| `columns` | columns made of others, below |
| `options` | those of `objective`: `{target: 40}`; what is given on the command line wins |
| `train_on` | what `zoreward tune --task` tunes on, if not `objective` |
| `bare` | the template for `--bare` |
| `content_free` | the template without what a row says |
| `model` | `causal`, or `masked` for one with a `[MASK]`: other models are refused |
| `about`, `source`, `needs` | for the reader |

A column is made, in this order and before the template is filled, by

| | makes |
|---|---|
| `name: "{a} and {b}"` | a text |
| `name: ["{a}", "{b}"]` | a list of texts: a row's own answers, for `choice_column` |
| `name: {of: "answers[text]"}` | what stands there, unchanged; of a list, the first that is there |
| `name: {of: question, values: {effect: so, cause: because}}` | `so` or `because` |
| `name: {text: "{query}", replace: {"@x": "{b}"}}` | a text, `@x` in it replaced |
| `name: {text: "{query}", each: names, replace: {"@x": "{each}"}}` | a list: one text for each of `names` |

A column of labels may hold a list of right answers: the first is asked for, the others are left out of that row's
candidates. So ReCoRD's accuracy is at most that of the papers, which count every right answer.

## Filters

Behind a column in any template, also in `--template`: `{question|strip|as_question}`.

| filter | text |
|---|---|
"""


def main() -> None:
    """Print the page."""
    print(page(), end="")


def page() -> str:
    """The page, as Markdown."""
    tasks = list_tasks()
    causal, masked = ([task for task in tasks if task.model == model] for model in ("causal", "masked"))
    parts = [HEAD, _counts(causal, masked), SPLITS.format(seeds=", ".join(map(str, PUBLISHED_SEEDS)))]
    parts += ["## For causal models\n\n", _table(causal), _details(causal)]
    parts += [
        "## For masked models\n\n",
        "`--task sst2` takes `sst2-masked` where the model is a masked one (docs/tuned.md); so do the others.\n\n",
        _table(masked),
    ]
    filters = "".join(f"| `{name}` | {(one.__doc__ or '').splitlines()[0]} |\n" for name, one in FILTERS.items())
    return "".join([*parts, "\n", OWN, filters])


def _counts(causal: list[Task], masked: list[Task]) -> str:
    lines = []
    kinds = {(task.rows.train, task.rows.dev, task.rows.test) for task in causal}
    for train, dev, test in sorted(kinds, key=str, reverse=True):
        names = [task.name for task in causal if (task.rows.train, task.rows.dev, task.rows.test) == (train, dev, test)]
        lines.append(f"| {', '.join(names)} | {train:,} | {dev:,} | {test:,} |\n")
    rows = masked[0].rows
    lines.append(f"| masked | {rows.k_shot} a class | {rows.k_shot} a class | {rows.test:,} |\n")
    return "".join(lines)


def _table(tasks: list[Task]) -> str:
    head = "| task | prompt → answers | reports | tunes on | data |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| `{task.name}` | {_code(task.template)} → {_answers(task)} | {task.objective} | {task.train_on} "
        f"| {_data(task)} |\n"
        for task in tasks
    )


def _details(tasks: list[Task]) -> str:
    lines = [f"- `{task.name}`: {task.about} {task.source}.\n" for task in tasks]
    return "\nLine breaks are written ⏎.\n\n" + "".join(lines) + "\n"


def _answers(task: Task) -> str:
    if task.choices is not None:
        return " / ".join(_code(choice) for choice in task.choices)
    if task.answer is not None:
        return _code(task.answer)
    return f"column `{task.choice_column}`: {_code(str(task.columns[str(task.choice_column)]))}"


def _data(task: Task) -> str:
    name = f"[{task.data}](https://huggingface.co/datasets/{task.data})"
    return " ".join(filter(None, [name, task.data_config, f"at {task.revision}" if task.revision else ""]))


def _code(text: str) -> str:
    """As code in a cell of a table, where a bar would end the cell."""
    return "`" + text.replace("\n", "⏎").replace("|", "\\|") + "`"


if __name__ == "__main__":
    main()
