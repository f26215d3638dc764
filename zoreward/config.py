"""Every option of zoreward, once: its type, its default, its help. Free of torch.

The command line makes its flags of these classes, `config.yaml` holds their fields, `ZOConfig` takes them over, and
functions are given the group that they need.

    >>> Prompting(template="{sentence} It was", choices=[" terrible", " great"]).label
    'label'
    >>> ZOArguments(eps=5e-3).eps
    0.005

Where the default depends on what the objective needs it is None here; "text" are objectives that score what a model
writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, dataclass_transform

from zoreward.noise import FAMILIES, Distribution
from zoreward.noise.families import NOISES

# --- defaults of what moves the weights -------------------------------------------------------------------------------

# By what the objective needs, and by what is tuned: weights of the model itself ("full"), LoRA or a prefix. Measured
# for text on two models of 12 M and 1.3 B parameters, with LoRA on the small one; the others are MeZO's (Malladi et al.
# 2023), a prefix for text by analogy. An adapter's weights are few, and stand behind those of the base: members must
# stand further off.
_ANSWERS = {"noise": "dense", "eps": 1e-3, "num_directions": 1, "normalize": "none", "learning_rate": 1e-6}
# Where a rate is found: a step of few directions learns nothing from rows that differ as much as pairs do. Along all
# weights they differ more than along those of attention, where LoRA lies: two to three times the passes.
_MARGINS = {**_ANSWERS, "noise": "low-rank", "num_directions": 64}
_TEXT = {"noise": "low-rank", "eps": 1e-2, "num_directions": 16, "normalize": "rms", "learning_rate": 3e-3}
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("answers", "full"): _ANSWERS,
    ("answers", "lora"): {**_ANSWERS, "eps": 1e-2, "learning_rate": 1e-4},
    ("answers", "prefix"): {**_ANSWERS, "eps": 1e-1, "learning_rate": 1e-2},
    ("margins", "full"): _MARGINS,
    ("margins", "lora"): {**_MARGINS, "num_directions": 32},
    ("margins", "prefix"): {**_MARGINS, "noise": "dense", "num_directions": 32},
    ("text", "full"): _TEXT,
    ("text", "lora"): {**_TEXT, "eps": 5e-2, "learning_rate": 2e-2},
    ("text", "prefix"): {**_TEXT, "noise": "dense", "eps": 1e-1, "learning_rate": 1e-2},
}
# By method, instead of these: those of its paper, for all weights of a model. `normalize` is None where a method has a
# way of its own.
_LOZO = {**_ANSWERS, "noise": "low-rank", "rank": 2, "eps": 1e-3 * 2**0.5, "refresh": 50}
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "spsa": {},
    "svrg": {**_ANSWERS, "normalize": None},
    "momentum": {"momentum": 0.9},
    "sign": {**_ANSWERS, "normalize": None, "learning_rate": 2e-5},
    "lozo": _LOZO,
    "lozo-m": {**_LOZO, "momentum": 0.9},
    "subzero": {**_ANSWERS, "noise": "low-rank", "rank": 24, "refresh": 1000},
    "sparse": {**_ANSWERS, "share": 0.25},
    "bcd": {**_ANSWERS, "block_every": 1},
    "es": {**_ANSWERS, "normalize": None, "num_directions": 30, "learning_rate": 5e-4},
    "fzoo": {
        **_ANSWERS,
        **{"normalize": None, "distribution": "rademacher", "eps": 1e-4, "num_directions": 8, "learning_rate": 5e-5},
    },
    "eggroll": {**_TEXT, "rank": 1, "normalize": "zscore"},
}
# The methods whose steps do not grow with the slope of the score: they divide by its spread, or take signs or ranks.
_WITHOUT_SLOPES = ("sign", "es", "fzoo", "eggroll")
# The options that have such a default.
DEFAULTED = tuple(dict.fromkeys(name for table in (_ANSWERS, *METHOD_DEFAULTS.values()) for name in table))


def defaults_of(method: str, needs: str, tuned: str) -> dict[str, Any]:
    """Return the defaults of a method, by what the objective needs and what is tuned.

    A method's own ε and learning rate are those of its paper, for all weights of a model. For an adapter they are
    multiplied by what MeZO's are: ε by 10 and the rate by 100 for LoRA, by 100 and 10,000 for a prefix. Those of a
    method whose steps do not grow with the slope, by what ours for text are, which do not either: by 5 and 6.7, by 10
    and 3.3.

    Args:
        method: its name.
        needs: "answers" or "text"; "margins" for answers that are compared with the base's, where a rate is found.
        tuned: "full", for weights of the model itself, "lora" or "prefix".

    >>> sparse = defaults_of("sparse", "answers", "lora")
    >>> sparse["eps"], sparse["learning_rate"], sparse["share"]
    (0.01, 0.0001, 0.25)
    """
    of_method = dict(METHOD_DEFAULTS[method])
    alike = "text" if method in _WITHOUT_SLOPES else "answers"
    for option in ("eps", "learning_rate"):
        if option in of_method and tuned != "full":
            times = DEFAULTS[alike, tuned][option] / DEFAULTS[alike, "full"][option]
            of_method[option] = float(f"{of_method[option] * times:.12g}")  # 1e-4, not 9.999999999999999e-05
    return {**DEFAULTS[needs, tuned], **of_method}


def finds_rate(args: Any) -> bool:
    """Whether the learning rate of a run, and ε, are found before step 1, as nobody gave the rate.

    Not for raw slopes, whose size a rate depends on.

    Args:
        args: with `learning_rate`, `normalize` and `method`, as they are given.

    >>> from types import SimpleNamespace
    >>> finds_rate(SimpleNamespace(learning_rate=None, normalize=None, method="spsa"))
    True
    """
    return args.learning_rate is None and args.normalize != "none" and args.method != "svrg"


def _default_in_words(option: str, otherwise: str = "") -> str:
    """The end of an option's help.

    >>> _default_in_words("eps"), _default_in_words("momentum", "0")
    ('Default: 1e-3, for text 1e-2.', 'Default: 0, for momentum 0.9, lozo-m 0.9.')
    """
    tables = {"text": _TEXT, "preferences without --lr": _MARGINS} if option in _TEXT else METHOD_DEFAULTS
    first = otherwise or _written(_ANSWERS[option])
    values = {name: _written(table[option]) for name, table in tables.items() if option in table}
    return f"Default: {first}, for {', '.join(f'{name} {value}' for name, value in values.items() if value != first)}."


def _written(value: Any) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) and value < 0.1 else str(value)


# --- options ----------------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    MethodName = str
    Noise = str
else:
    MethodName, Noise = Literal[tuple(METHOD_DEFAULTS)], Literal[NOISES]

# What the command line lets through. A journal holds no larger rank or window and no more blocks, and a line of it has
# room for the scores and the terms of so many directions.
MOST_RANK, MOST_WINDOW, MOST_BLOCKS, MOST_DIRECTIONS = 4096, 1023, 65_535, 16_384
# Threads.
MOST_WORKERS = 10_000
MOST_REWINDS = 100
# Of seeds: numpy's, which transformers sets, takes no more.
MOST_SEED = 2**32 - 1
# The run folder where nobody names one; the last part is then the objective's name.
DEFAULT_OUTPUT = "runs/OBJECTIVE"
# The panels of the help, in their order.
PANELS = DATA, TASK, PROMPT, TEXT, TUNING, OBJECTIVE, RUN = (
    *("Model and data", "Task and splits", "Prompt", "Text that is written", "Tuning", "Objective", "Run"),
)

_Group = TypeVar("_Group")


def setting(*, help: str, default: Any = MISSING, **about: Any) -> Any:
    """Return a field of a group of options.

    Args:
        help: a sentence.
        default: its value where it is not given; without one it must be given.
        about: `flag`, if it is written otherwise than by its name; `argument`, if it is written without a flag, and how
            the help calls it then; `panel` of the help, if not its group's; `least` and `most` of a number on the
            command line; what a number is `above`, in which `unit`; what is said where the option `stops` a run;
            `kept=False`: it is not written into config.yaml; `recorded=False`: nor into the header of a run;
            `breaks=True`: where it is typed, backslash and n are a line break;
            `may_change=True`: a run can go on with another value.
    """
    return field(default=default, metadata={"help": help, **about})


def same_as(group: Any, name: str, **about: Any) -> Any:
    """Return a field for another group that has an option too; see `setting`.

    Args:
        group: which has the option.
        name: of it.
        about: what is said otherwise.
    """
    known: Field[Any] = group.__dataclass_fields__[name]
    return field(default=about.pop("default", known.default), metadata={**known.metadata, **about})


@dataclass_transform(kw_only_default=True, field_specifiers=(setting, same_as, field))
def options(panel: str) -> Callable[[type[_Group]], type[_Group]]:
    """Make a class a group of options: a frozen dataclass, whose options stand in one panel of the help.

    Type checkers take it for one that is not frozen, since `ZOConfig` has its fields and must be open, as
    `transformers.TrainingArguments` is.
    """

    def made(group: type[_Group]) -> type[_Group]:
        for option in vars(group).values():
            if isinstance(option, Field):
                option.metadata = MappingProxyType({"panel": panel, **option.metadata})
        # Written once for all groups: dataclass would write, and Python compile, three functions for each.
        group.__repr__, group.__eq__, group.__hash__ = _as_text, _is_equal, None  # type: ignore[assignment]
        return dataclass(frozen=True, kw_only=True, repr=False, eq=False)(group)

    return made


def _as_text(group: Any) -> str:
    return f"{type(group).__name__}({', '.join(f'{one.name}={getattr(group, one.name)!r}' for one in fields(group))})"


def _is_equal(group: Any, other: object) -> bool:
    return type(group) is type(other) and vars(group) == vars(other)


def part_of(group: type[_Group], values: Any, **instead: Any) -> _Group:
    """Return one group of options alone.

    Args:
        group: which.
        values: what has them all, and more: a `ZOConfig`, or the options of a command.
        instead: other values for some of them.

    >>> part_of(Writing, ZOArguments(top_k=5), temperature=1.0).top_k
    5
    """
    taken = {option.name: getattr(values, option.name) for option in fields(group)}  # type: ignore[arg-type]
    return group(**taken | instead)


@options(PROMPT)
class Prompting:
    """How rows become prompts."""

    template: str | None = setting(
        default=None,
        help="The prompt, with the columns of a row in braces: '{sentence} It was'. Here, and in answers and --stop, "
        r"\n is a line break.",
        breaks=True,
    )
    prompt: str = setting(
        default="prompt",
        help="The column of the prompt, a text or messages. For objectives that score what a model writes.",
    )
    choices: list[str] | None = setting(
        default=None,
        help="A candidate answer: a label's own text, in any order; or label=answer; or in the order of labels 0, 1, … "
        "Give it once for each.",
        flag="--choice",
        breaks=True,
    )
    choice_column: str | None = setting(
        default=None,
        help="Instead of choices: the column that holds each row's own answers, a list of strings, or a path to "
        "it: choices[text]. Spaces at the end of the template are read with the answer, so 'Answer: ' fits "
        "answers that begin without one.",
    )
    label: str = setting(default="label", help="The column that holds the right choice, or a path to it: answer[key].")
    answer: str | None = setting(
        default=None,
        help="The right answer, as a template: ' {answer}'. For objectives that need a likelihood.",
        breaks=True,
    )
    chat: Literal["auto", "on", "off"] = setting(
        default="auto",
        help="on: a prompt is the user's turn by the model's chat template, and answers are the assistant's; "
        "demonstrations are earlier turns. off: prompts are raw. auto: raw too, which is said where there is a chat "
        "template. Prompts that are messages go through it in any case.",
    )
    system_prompt: str | None = setting(
        default=None, help="The system's turn in front of each conversation that begins with none.", breaks=True
    )
    chat_template_kwargs: dict[str, Any] | str | None = setting(
        default=None,
        help="Variables for the chat template, as JSON: '{\"enable_thinking\": false}'. For conversations; the columns "
        "tools and chat_template_kwargs of their rows are passed on too.",
    )
    shots: int = setting(
        default=0,
        help="Demonstrations in front of each prompt: other rows with their right answers, drawn by the seed. "
        "Where the context is too short for all, the first ones are left out.",
    )
    max_length: int | None = setting(
        default=None,
        help="Tokens of prompt and answer; more are cut off on the left. Default: the model's context.",
        least=1,
    )


@options(DATA)
class Loading:
    """How the weights are loaded."""

    dtype: str | None = setting(
        default=None,
        help="Load the weights as float32, bfloat16, float16 or auto. Default: float32 on a CPU, else auto.",
    )
    device_map: str | None = setting(
        default=None,
        help="auto: spread the layers over all GPUs that are seen, for a model that one does not hold.",
        may_change=True,
    )
    trust_remote_code: bool = setting(
        default=False, help="Run the code that a model from the Hub brings along.", may_change=True
    )
    # Once it is read, it is a part of the model's name.
    model_revision: str | None = setting(
        default=None,
        help="The revision of a model on the Hub: a branch, tag or commit. --model NAME@REVISION says it, too.",
        kept=False,
        recorded=False,
    )


@options(TEXT)
class Writing:
    """How a model writes, for objectives that need completions."""

    max_completion_length: int = setting(
        default=64, help="The most tokens that are written after a prompt.", flag="--max-new-tokens"
    )
    temperature: float = setting(
        default=0.0,
        help="0: take the likeliest token. Above 0: draw tokens, with common random numbers for all members.",
    )
    top_p: float = setting(default=1.0, help="Draw from the likeliest tokens that have this probability.")
    top_k: int = setting(default=0, help="Draw from so many likeliest tokens; 0: from all.")
    min_p: float | None = setting(
        default=None, help="Draw from tokens at least so many times as probable as the likeliest. Default: from all."
    )
    repetition_penalty: float = setting(
        default=1.0,
        help="Above 1: tokens that stand in the prompt, or were written, become less likely. Below 1: likelier.",
    )
    stop: list[str] | None = setting(
        default=None, help="What is written ends before this text. Give it once for each.", breaks=True
    )


@options(OBJECTIVE)
class Rewarding:
    """How the objective is called. It changes no score."""

    reward_timeout: float | None = setting(
        default=None,
        help="Timeout: the seconds that one call of the objective may take before the run ends. Default: no limit.",
        recorded=False,
    )
    reward_retries: int = setting(
        default=0,
        help="How often a call that raises or times out is retried, after at most 1, 2, 4, … seconds.",
        recorded=False,
    )
    reward_workers: int | None = setting(
        default=None,
        help="Calls of the objective at a time, in threads; each of one row where the objective is rowwise "
        "(docs/objectives.md). Default: one, or all of what is async.",
        most=MOST_WORKERS,
        recorded=False,
    )
    reward_cache: str | None = setting(
        default=None,
        help="A folder that caches the scores of rowwise objectives, for this run and later ones.",
        recorded=False,
    )


@options(TUNING)
class Tuning:
    """How the weights are moved. None: the default depends on the method, the objective and what is tuned."""

    method: MethodName = setting(
        default="spsa", help="How scores become steps; a name sets the defaults of its paper. docs/methods.md has them."
    )
    noise: Noise | None = setting(
        default=None,
        help=f"Directions {', or '.join(FAMILIES[name].about for name in NOISES)}. {_default_in_words('noise')}",
    )
    distribution: Distribution | None = setting(
        default=None,
        help="Entries of directions, or of the factors of low-rank ones: normal (33 levels), gaussian (slower) or "
        f"rademacher (±1). {_default_in_words('distribution', 'normal')}",
    )
    rank: int | None = setting(
        default=None, help=f"Rank of low-rank directions. {_default_in_words('rank', '1')}", most=MOST_RANK
    )
    eps: float | None = setting(
        default=None,
        help="ε, the distance of members from the weights along a direction. Default: found before step 1, as the "
        f"learning rate is. Where that is given: {_default_in_words('eps').removeprefix('Default: ')}",
    )
    num_directions: int | None = setting(
        default=None,
        help=f"Directions a step (K); each costs two members. {_default_in_words('num_directions')}",
        most=MOST_DIRECTIONS,
    )
    rows_per_direction: int | None = setting(
        default=None,
        help="Divide the rows of a step among the directions, at least so many for each: K directions then cost as "
        "much as one. With spsa, for answers that are given; 1 for a score of rows, more for one of the set, such as "
        "F1. Default: every direction is scored on all rows.",
        least=1,
        most=MOST_DIRECTIONS,
    )
    more_every: int | None = setting(
        default=None, help="Add a direction after every so many steps. Default: never.", least=1
    )
    normalize: Literal["none", "running", "rms", "zscore", "rank", "sign"] | None = setting(
        default=None,
        help="How differences of scores are normalised, with spsa. Default: running where the learning rate is found "
        f"for answers that are given; else {_default_in_words('normalize').removeprefix('Default: ')}",
    )
    momentum: float | None = setting(
        default=None, help=f"β: earlier steps count too, weighted by β, β², … {_default_in_words('momentum', '0')}"
    )
    window: int | None = setting(
        default=None,
        help="How many steps momentum looks back on; an update draws the directions of them all. Default: 10.",
        most=MOST_WINDOW,
    )
    refresh: int | None = setting(
        default=None,
        help=f"Steps that share a factor of low-rank directions, or a subspace. {_default_in_words('refresh', '1')}",
    )
    share: float | None = setting(
        default=None,
        help=f"Tune this share of each tensor, its smallest weights. {_default_in_words('share', 'all')}",
    )
    blocks: int | None = setting(
        default=None,
        help="Tune the layers in turn, in so many blocks of adjacent layers. Default: all at once; with bcd, or "
        "block_every, a block for each layer and one for the rest.",
        most=MOST_BLOCKS,
    )
    block_every: int | None = setting(
        default=None, help="How many steps a block is tuned before it is another's turn. Default: 1, with blocks."
    )
    full_every: int | None = setting(
        default=None, help="A pass over all rows after every so many steps, with svrg. Default: 2."
    )
    full_rate: float | None = setting(
        default=None, help="How many times larger the step after such a pass is, with svrg. Default: 10."
    )
    anneal_every: int | None = setting(
        default=None,
        help="svrg lowers its learning rates where so many steps score worse than as many before; 0: never. Default: "
        "an epoch.",
    )
    tune: str = setting(
        default="full",
        help="What is tuned: full, lora (an adapter beside the weights), prefix (5 tokens before every row), bias, "
        "head, last-N (layers), or a regular expression for names of weights. Of a model with an adapter: the "
        "adapter.",
    )
    head: Literal["classifier"] | None = setting(
        default=None,
        help="classifier: put a new head on the model, with a class for each choice or label. By default a "
        "...ForSequenceClassification is a classifier, and a ...ForMaskedLM fills a [MASK] in the template.",
    )
    lora_rank: int = setting(default=8, help="Rank of the adapter's matrices, with lora.", most=MOST_RANK)
    lora_alpha: int = setting(default=16, help="The adapter's output is scaled by alpha/rank, with lora.", least=1)
    merge: bool = setting(
        default=False, help="Save the whole model with its adapter merged in, instead of the adapter."
    )
    drift: bool = setting(
        default=False,
        help="Log how far the model has moved from the reference model, itself before step 1: KL per token of what it "
        "writes, and the weights. Keeps a copy of the reference model. On by itself with kl and max_kl.",
        may_change=True,
    )
    kl: float = setting(
        default=0.0, help="Subtract so many times the KL to the reference model, per token, from each member's score."
    )
    max_kl: float | None = setting(
        default=None,
        help="Stop where the model's KL to the reference model, per token, exceeds this; such a step is not the best.",
        above=0,
        unit="nats per token",
        may_change=True,
    )
    anchor: float = setting(
        default=0.0, help="Decay towards the weights before step 1, times the learning rate. Keeps a copy of them."
    )
    base_device: str | None = setting(
        default=None,
        help="The device of the copy of the reference model. Default: that of the model; cpu is slower.",
        may_change=True,
    )


# What goes to the method under its own name; all but weight_decay and the seed are of `Tuning`.
METHOD_OPTIONS = (
    *("eps", "num_directions", "distribution", "weight_decay", "anchor", "normalize", "more_every", "momentum"),
    *("window", "refresh", "full_every", "full_rate", "anneal_every", "block_every", "rows_per_direction", "seed"),
)


@options(RUN)
class Seeding:
    """What is drawn."""

    seed: int = setting(default=0, help="Seed of directions and of the order of rows.", least=0, most=MOST_SEED)


@options(RUN)
class Running:
    """How a run goes, whatever moves the weights."""

    completions_every: int = setting(
        default=10,
        help="Show and keep prompts, completions and rewards every so many steps; 0: never.",
        least=0,
        panel=TUNING,
        may_change=True,
    )
    ranks_split: Literal["auto", "members", "rows"] = setting(
        default="auto",
        help="What several ranks share (torchrun, accelerate launch): members, each with all rows, or the rows of all "
        "members. auto: members where there are enough for all ranks. A resume shares what the run began with.",
        recorded=False,
    )
    tensor_parallel: int | None = setting(
        default=None,
        help="Divide the model's layers among so many ranks (torchrun), for a model that one GPU does not hold; of "
        "more, groups of so many share the work. Dense directions, and answers that are given.",
        least=2,
    )
    engine: str = setting(
        default="local",
        help="Who writes, for objectives of text: local, the model at hand; vllm; or a server of vLLM's, "
        "openai:http://host:port, where an adapter is tuned. docs/engines.md.",
        recorded=False,
    )
    gpu_memory_utilization: float | None = setting(
        default=None,
        help="The share of the GPU's memory that vLLM takes, weights and cache; on a CPU of the machine's. Default: of "
        "a GPU what is free beside the model; on a CPU what the texts of a step take.",
        above=0,
        unit="shares of the memory",
        may_change=True,
    )
    max_seconds: float | None = setting(
        default=None,
        help="Stop after the step in which so many seconds have passed since the first began; a rate that is found is "
        "one for as many steps as these pay. A resume counts anew.",
        above=0,
        unit="seconds",
        recorded=False,
        stops="so many seconds had passed",
    )
    max_rewinds: int | None = setting(
        default=None,
        help="How often a run whose dev score falls by more than noise goes back to its best step, and on with a third "
        "of the learning rate or less, before it stops there; 0: never. Default: 4, where the best step is kept.",
        least=0,
        most=MOST_REWINDS,
        may_change=True,
        stops="the dev score fell once more",
    )
    max_forwards: int | None = setting(
        default=None,
        help="Take at most so many forward passes, each of one member on one batch: a step takes 2 for each direction, "
        "dev scores and the search for a rate one for each batch of their rows. Without --steps there are as many as "
        "these pay.",
        least=1,
        above=0,
        unit="forward passes",
        recorded=False,
        stops="another step would have taken more forward passes than there may be",
    )


if TYPE_CHECKING:

    class ZOArguments(Running, Seeding, Rewarding, Tuning, Writing, Loading, Prompting):
        """What `ZOConfig` adds to `transformers.TrainingArguments`."""

else:  # a class that is not frozen has no frozen one for a base
    ZOArguments = make_dataclass(
        "ZOArguments",
        [
            (option.name, option.type, field(default=option.default, metadata=option.metadata))
            for group in (Prompting, Loading, Writing, Tuning, Rewarding, Seeding, Running)
            for option in fields(group)
        ],
        namespace={"__module__": __name__, "__doc__": "What `ZOConfig` adds to `transformers.TrainingArguments`."},
    )


# What follows are options of the commands alone.


@options(DATA)
class Data:
    """Which model, and which rows."""

    model: str = setting(help="A folder, or a Hub id such as facebook/opt-125m.")
    data: str | None = setting(
        default=None,
        help="The rows to tune on: a .jsonl, .json, .csv or .parquet file, or a Hub dataset. Default: the task's.",
    )
    data_config: str | None = setting(default=None, help="The configuration of a Hub dataset.")
    split: str | None = setting(default=None, help="The split of a Hub dataset. Default: train.")
    limit: int | None = setting(default=None, help="Take the first rows only.", least=1)
    revision: str | None = setting(default=None, help="The revision of a Hub dataset: a branch, tag or commit.")
    device: str | None = setting(default=None, help="cpu, cuda or cuda:1. Default: the GPU if there is one.")


@options(DATA)
class DevRows:
    """Rows that choose, where they are others than those of --data."""

    eval_data: str | None = setting(
        default=None, help="Dev rows, a file or a Hub dataset: scored before step 1, at the end and between."
    )
    eval_split: str | None = setting(
        default=None, help="The split of the dev rows in a Hub dataset: that of --eval-data, else of --data."
    )
    eval_limit: int | None = setting(default=None, help="Take the first dev rows only.", least=1)


@options(TASK)
class Splits:
    """The task, and how its rows are divided."""

    task: str | None = setting(
        default=None,
        help="A task of `zoreward tasks`, or a YAML file: data, prompt, answers, splits. What else is given wins.",
    )
    bare: bool = setting(default=False, help="The task without its prompt: the columns alone, then the answers.")
    test_rows: int | None = setting(
        default=None, help="Draw so many rows to score at the end: of --test-data, or held out of --data.", least=1
    )
    split_seed: int = setting(
        default=0, help="Seed of the draw of rows to tune on and dev rows.", least=0, most=MOST_SEED
    )


@options(TASK)
class Held:
    """Which rows are tuned on, and which are held out."""

    test_data: str | None = setting(
        default=None, help="Rows that are scored once, at the end: a file or a Hub dataset. They choose nothing."
    )
    train_rows: int | None = setting(
        default=None, help="Draw so many rows to tune on. Default: the task's, else all.", least=1
    )
    dev_rows: int | None = setting(
        default=None,
        help="Draw so many dev rows: of --eval-data, or held out of --data. Default: without --eval-data one in five "
        "of 200 or more, at most 64, unless --keep is last.",
        least=1,
    )
    k_shot: int | None = setting(
        default=None, help="Draw so many rows of each class to tune on, and as many dev rows.", least=1
    )


@options(TUNING)
class Steps:
    """Fields of `transformers.TrainingArguments` that have a flag of their own."""

    max_steps: int | None = setting(
        default=None, help="Steps. Default: 1000; with --max-forwards as many as these pay.", flag="--steps", least=1
    )
    per_device_train_batch_size: int = setting(default=16, help="Rows a batch.", flag="--batch-size", least=1)
    gradient_accumulation_steps: int = setting(
        default=1, help="Batches a step; their rows are scored together.", least=1
    )
    learning_rate: float | None = setting(
        default=None,
        help="Learning rate. Default: found before step 1, from how far the weights may move at random; for "
        f"svrg and --normalize none {_written(_ANSWERS['learning_rate'])}. Methods have others where they are not "
        "found: docs/methods.md.",
        flag="--lr",
    )
    lr_scheduler_type: str = setting(
        default="constant", help="How the learning rate changes: constant, linear, cosine, …"
    )
    warmup_steps: int = setting(
        default=0,
        help="Steps over which the learning rate rises from 0; then it goes on as the schedule says.",
        least=0,
    )
    weight_decay: float = setting(default=0.0, help="Weight decay, times the learning rate.")
    eval_steps: int | None = setting(
        default=None,
        help="Score the dev rows every so many steps. Default: some ten times in the run; with --keep last at its end.",
        flag="--eval-every",
        panel=RUN,
        least=1,
    )
    logging_steps: int = setting(default=10, help="Log every so many steps.", panel=RUN, least=1)
    report_to: str = setting(
        default="none", help="A logger that gets the scores too: wandb, tensorboard, mlflow, …", panel=RUN
    )


@options(RUN)
class Command:
    """What `tune` and `eval` share beside what stands in groups of its own."""

    shots_data: str | None = setting(
        default=None,
        help="Rows to take the demonstrations from. Default: those of --data, but never the row itself.",
        panel=PROMPT,
    )
    show_prompts: bool = setting(
        default=False, help="Print the first prompts and their tokens, and stop.", panel=PROMPT, kept=False
    )
    eval_batch_size: int | None = setting(
        default=None, help="Rows of one forward pass when scoring. Default: as many as make it efficient.", least=1
    )
    json: bool = setting(default=False, help="Print one JSON object as the last line.", kept=False)
    also: list[str] | None = setting(
        default=None,
        help="Another objective to add, as NAME=WEIGHT: neg-cross-entropy=0.1. Give it once for each.",
        panel=OBJECTIVE,
    )
    metric: list[str] | None = setting(
        default=None,
        help="Another objective to report beside the score, on the rows of eval and the dev rows of tune; no part of "
        "it. Give it once for each.",
        panel=OBJECTIVE,
    )


# A class has the fields of its bases, the last one's first. Nobody makes this one itself: it need not be a dataclass.
class Common(Command, Seeding, Rewarding, Writing, Loading, Prompting, Splits, Data):
    """The options that `tune` and `eval` share."""


@options(RUN)
class TuneOptions(Running, Steps, Tuning, Held, DevRows, Common):
    """The options of `zoreward tune`."""

    set: list[str] | None = setting(
        default=None,
        help="Another field of transformers' TrainingArguments, as name=value. Give it once for each.",
    )
    keep: Literal["last", "best"] | None = setting(
        default=None,
        help="The model of which step is saved: the last, or the one with the best dev score, the base among them. "
        "Default: the best, where there are dev rows.",
    )
    patience: int | None = setting(
        default=None,
        help="Stop after so many dev scores in a row that are no better than the best so far.",
        least=1,
        stops="so many dev scores in a row were no better",
    )
    dry_run: bool = setting(
        default=False,
        help="Show two prompts, members, rows, memory, and what would be found before step 1; load no weights, write "
        "nothing.",
        kept=False,
    )
    output: str = setting(
        default=DEFAULT_OUTPUT, help="The run folder to write to; by default a new one, which then has a number."
    )
    elastic: str | None = setting(
        default=None,
        help="Listen at tcp://host:port for workers, which help with the steps and come and go as they like: `zoreward "
        "worker`. Port 0: any that is free. docs/ranks.md.",
        kept=False,
    )
    hub: str | None = setting(
        default=None,
        flag="--push-to-hub",
        help="Upload the model, its card and its trajectory to this repository on the Hub when the run is over: "
        "user/name. A new one is private. Needs `hf auth login`.",
        kept=False,
    )
    resume: bool = setting(
        default=False,
        help="Go on with the run in --output from its last step: the same command again. Begin it if there is none.",
        kept=False,
    )


@options(DATA)
class WorkerOptions:
    """The options of `zoreward worker`."""

    address: str = setting(help="Where the run listens, as it says itself: tcp://host:port.", argument="ADDRESS")
    model: str | None = setting(default=None, help="Where the run's base is here. Default: where the run has it.")
    data: str | None = setting(default=None, help="Where the run's rows are here. Default: where the run has them.")
    device: str | None = same_as(Data, "device")
    code: list[str] | None = setting(
        default=None,
        help="Code that the run calls and that you know, as it was given to tune: FILE.py:function. Nothing runs here "
        "because the coordinator names it. Give it once for each.",
        panel=OBJECTIVE,
    )
    trust_remote_code: bool = same_as(Loading, "trust_remote_code")
    json: bool = same_as(Command, "json", panel=RUN)


@options(RUN)
class EvalOptions(Common):
    """The options of `zoreward eval`."""

    data: str | None = same_as(
        Data,
        "data",
        help="The rows to score on: a .jsonl, .json, .csv or .parquet file, or a Hub dataset. Default: the task's.",
    )
    test_rows: int | None = same_as(
        Splits, "test_rows", help="Draw so many rows to score. Default: the task's, else all."
    )
    seed: int = same_as(Seeding, "seed", help="Seed of demonstrations, and of what is drawn.")
    base_model: str | None = setting(
        default=None,
        help="The model before it was tuned, for objectives that compare with it: a folder or a Hub id.",
        panel=DATA,
    )
    output: str | None = setting(
        default=None,
        help="Write what became of each row to this file, .jsonl or .parquet: prompt, answer, prediction or "
        "completion, log-probabilities, score.",
    )
    calibrate: bool = setting(
        default=False,
        help="Score answers by how much likelier the prompt makes them than one without content does.",
        panel=PROMPT,
    )


@options(RUN)
class QuickstartOptions(Seeding):
    """The options of `zoreward quickstart`."""

    max_steps: int = same_as(Steps, "max_steps", default=150, help="Steps.")
    output: str | None = setting(default=None, help="Keep the run and the tuned model in this folder.")
    json: bool = same_as(Command, "json")


@options(DATA)
class ReplayOptions:
    """The options of `zoreward replay`."""

    run: str = setting(help="A run folder, a journal.jsonl or a trajectory.safetensors.", argument="RUN")
    model: str | None = setting(
        default=None, help="The weights that the run began with: a folder, or a Hub id. Others are refused."
    )
    device: str | None = same_as(Data, "device")
    device_map: str | None = same_as(Loading, "device_map")
    trust_remote_code: bool = same_as(Loading, "trust_remote_code")
    model_revision: str | None = same_as(Loading, "model_revision")
    output: str | None = setting(
        default=None, help="A new folder for the model, or the run's adapter, and the tokenizer.", panel=RUN
    )
    step: int | None = setting(default=None, help="How many steps. Default: all.", panel=RUN, least=0)
    average: int | None = setting(
        default=None, help="The mean of the last so many states, in place of the last one.", panel=RUN, least=1
    )
    scale: float = setting(
        default=1.0, help="Move so many times as far from the base as the run did; below 0: away from it.", panel=RUN
    )
    merge: list[str] | None = setting(
        default=None,
        help="Another run over the same base: what both moved the weights by is added. Give it once for each.",
        panel=RUN,
    )
    json: bool = setting(default=False, help="Print the scores and slopes of each step, in one JSON object.", panel=RUN)


@options(RUN)
class InfluenceOptions(Writing, Loading, Prompting, Data):
    """The options of `zoreward influence`."""

    data: str = same_as(
        Data,
        "data",
        default=MISSING,
        help="The rows to be judged: a .jsonl, .json, .csv or .parquet file, or a Hub dataset.",
    )
    for_data: str = setting(
        help="The rows that they are judged by, on which the model is to get better: a file or a Hub dataset.",
        flag="--for",
        panel=DATA,
    )
    output: str = setting(help="Write each row with its influence to this file, .jsonl or .parquet.")
    objective: str | None = setting(
        default=None,
        help="The score of a row: any objective that scores row by row. Default: log-likelihood; with choices "
        "neg-cross-entropy.",
        panel=OBJECTIVE,
    )
    method: Literal["fuzzy", "readout"] = setting(
        default="fuzzy",
        help="fuzzy: slopes of the score along random directions, of all weights that they move. readout: the gradient "
        "of the right answer's log-likelihood by the last layer alone, from one forward pass; for causal models.",
        panel=TUNING,
    )
    directions: int = setting(
        default=256,
        help="Directions; each reads every row twice. The error of a row's influence falls with their root.",
        least=2,
        most=MOST_DIRECTIONS,
        panel=TUNING,
    )
    noise: Noise = setting(
        default="low-rank",
        help="Directions low-rank, by matrices alone and all in a few passes, or dense, by every weight.",
        panel=TUNING,
    )
    eps: float | None = setting(
        default=None,
        help="ε, the distance of members from the weights along a direction. Default: found, as by tune; with --along "
        "the run's.",
        least=1e-12,
        panel=TUNING,
    )
    along: str | None = setting(
        default=None,
        help="A run, of which --model is the base: go along its own steps and directions, at the weights that it had.",
        panel=TUNING,
    )
    seed: int = same_as(Seeding, "seed", help="Seed of the directions, and of what is drawn.")
    eval_batch_size: int | None = same_as(Command, "eval_batch_size")
    json: bool = same_as(Command, "json")


@options(RUN)
class NewObjectiveOptions:
    """The options of `zoreward new-objective`."""

    name: str = setting(help="Of the objective: small letters, digits and hyphens.", argument="NAME")
    needs: Literal["completions", "choices"] = setting(
        default="completions", help="What it scores: texts that the model writes, or which of some answers it takes."
    )
    output: str | None = setting(default=None, help="A new folder for the package. Default: zoreward-NAME.")
    json: bool = setting(default=False, help="Print one JSON object as the last line.")


@options(RUN)
class ReportOptions:
    """The options of `zoreward report`."""

    runs: list[str] = setting(help="A run folder, or several, to compare them.", argument="RUN...")
    output: str | None = setting(
        default=None, help="The page. Default: report.html in the run folder; of several runs comparison.html."
    )
    json: bool = setting(default=False, help="Print the page's path and the numbers of each run, in one JSON object.")


@options(RUN)
class CompareOptions:
    """The options of `zoreward compare`."""

    a: str = setting(
        help="What `zoreward eval … --output` wrote of one model: a .jsonl or .parquet file.", argument="A"
    )
    b: str = setting(help="And of another model, of the same rows.", argument="B")
    seed: int = same_as(Seeding, "seed", help="Seed of the draws, for the interval and the p-value.")
    json: bool = setting(default=False, help="Print one JSON object as the last line.")


@options(RUN)
class WinRateOptions(Seeding, Rewarding, Writing, Loading):
    """The options of `zoreward win-rate`."""

    model: str = setting(help="A folder or a Hub id; of a run that is its model/.", argument="MODEL")
    against: str = setting(help="The model that it is compared with: a folder or a Hub id.", panel=DATA)
    judge: str = setting(
        help="A reward model, a folder or a Hub id; or FILE.py:function, of completions, or of completions_a and "
        "completions_b; or an objective that needs completions.",
        panel=OBJECTIVE,
    )
    data: str = same_as(
        Data,
        "data",
        default=MISSING,
        help="Rows with prompts, or with preferences: a .jsonl, .json, .csv or .parquet file, or a Hub dataset.",
    )
    data_config: str | None = same_as(Data, "data_config")
    split: str | None = same_as(Data, "split")
    limit: int | None = same_as(Data, "limit")
    revision: str | None = same_as(Data, "revision")
    device: str | None = same_as(Data, "device")
    template: str | None = same_as(Prompting, "template")
    prompt: str = same_as(Prompting, "prompt", help="The column of the prompt, a text or messages.")
    chat: Literal["auto", "on", "off"] = same_as(Prompting, "chat")
    system_prompt: str | None = same_as(Prompting, "system_prompt")
    chat_template_kwargs: dict[str, Any] | str | None = same_as(Prompting, "chat_template_kwargs")
    max_length: int | None = same_as(Prompting, "max_length")
    temperature: float = same_as(
        Writing, "temperature", help="0: take the likeliest token. Above 0: draw tokens, independently for each model."
    )
    seed: int = same_as(Seeding, "seed", help="Seed of what is drawn: tokens, and prompts for the interval.")
    eval_batch_size: int | None = same_as(Command, "eval_batch_size")
    json: bool = same_as(Command, "json")
