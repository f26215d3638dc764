"""The options of a run that are not Hugging Face's own. Free of torch: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from zoreward.noise import FAMILIES, Distribution
from zoreward.noise.families import NOISES

if TYPE_CHECKING:
    Noise = str
else:
    Noise = Literal[NOISES]

# What the command line lets through. A journal holds no larger rank or window and no more blocks, and a line of it has
# room for the scores and the terms of so many directions.
MOST_RANK, MOST_WINDOW, MOST_BLOCKS, MOST_DIRECTIONS = 4096, 1023, 65_535, 16_384
# Threads.
MOST_WORKERS = 10_000


@dataclass
class ZOArguments:
    """What `ZOConfig` adds to `transformers.TrainingArguments`. Every field is also an option of `zoreward tune`.

    Example:
        >>> ZOArguments(eps=5e-3, template="{sentence} It was", choices=[" terrible", " great"]).label
        'label'

    Where the default depends on what the objective needs it is None here; "text" are objectives that need completions.
    """

    method: Literal[
        "spsa", "svrg", "momentum", "sign", "lozo", "lozo-m", "subzero", "sparse", "bcd", "es", "fzoo", "eggroll"
    ] = field(
        default="spsa",
        metadata={"help": "How scores become steps; a name sets the defaults of its paper. docs/methods.md has them."},
    )
    noise: Noise | None = field(
        default=None,
        metadata={
            "help": f"Directions {', or '.join(FAMILIES[name].about for name in NOISES)}. Default: dense, for text "
            "low-rank."
        },
    )
    distribution: Distribution | None = field(
        default=None,
        metadata={
            "help": "Entries of directions, or of the factors of low-rank ones: normal (33 levels), gaussian (slower) "
            "or rademacher (±1). Default: normal, for fzoo rademacher."
        },
    )
    rank: int | None = field(
        default=None,
        metadata={"help": "Rank of low-rank directions. Default: 1, for lozo 2, for subzero 24.", "most": MOST_RANK},
    )
    eps: float | None = field(
        default=None,
        metadata={"help": "ε, how far members stand from the weights. Default: 1e-3, for text 1e-2."},
    )
    num_directions: int | None = field(
        default=None,
        metadata={
            "help": "Directions a step (K); each costs two members. Default: 1, for text 16.",
            "most": MOST_DIRECTIONS,
        },
    )
    more_every: int | None = field(
        default=None,
        metadata={"help": "One direction more after every so many steps. Default: never.", "least": 1},
    )
    normalize: Literal["none", "rms", "zscore", "rank", "sign"] | None = field(
        default=None,
        metadata={"help": "What becomes of differences of scores, with spsa. Default: none, for text rms."},
    )
    momentum: float | None = field(
        default=None, metadata={"help": "β: the steps before count too, by β, β², … Default: 0, for momentum 0.9."}
    )
    window: int | None = field(
        default=None,
        metadata={
            "help": "Steps that momentum looks back on; the update draws them all. Default: 10.",
            "most": MOST_WINDOW,
        },
    )
    refresh: int | None = field(
        default=None,
        metadata={
            "help": "Steps that share a factor of low-rank directions, or a subspace. Default: 1, for lozo 50, for "
            "subzero 1000."
        },
    )
    share: float | None = field(
        default=None,
        metadata={"help": "Tune this share of each tensor, its smallest weights. Default: all, for sparse 0.25."},
    )
    blocks: int | None = field(
        default=None,
        metadata={
            "help": "Tune blocks of layers in turn: so many, neighbours together. Default: all at once; with bcd, or "
            "block_every, one for each layer and one for the rest.",
            "most": MOST_BLOCKS,
        },
    )
    block_every: int | None = field(
        default=None, metadata={"help": "Steps of a block before it is another's turn. Default: 1, with blocks."}
    )
    full_every: int | None = field(
        default=None, metadata={"help": "Steps from one pass over all rows to the next, with svrg. Default: 2."}
    )
    full_rate: float | None = field(
        default=None, metadata={"help": "How much larger the step after such a pass is, with svrg. Default: 10."}
    )
    anneal_every: int | None = field(
        default=None,
        metadata={"help": "Steps of the two windows by which svrg lowers its rates; 0: never. Default: an epoch."},
    )
    tune: str = field(
        default="full",
        metadata={
            "help": "What is tuned: full, lora (an adapter beside the weights), prefix (5 tokens before every row), "
            "bias, head, last-N (layers), or a regular expression for names of weights. Of a model with an adapter: "
            "the adapter."
        },
    )
    head: Literal["classifier"] | None = field(
        default=None,
        metadata={
            "help": "classifier: put a new head on the model, with a class for each choice or label. By default a "
            "...ForSequenceClassification is a classifier, and a ...ForMaskedLM fills a [MASK] in the template."
        },
    )
    lora_rank: int = field(
        default=8, metadata={"help": "Rank of the adapter's matrices, with lora.", "most": MOST_RANK}
    )
    lora_alpha: int = field(
        default=16, metadata={"help": "The adapter counts alpha/rank times, with lora.", "least": 1}
    )
    merge: bool = field(
        default=False, metadata={"help": "Save the whole model with its adapter merged in, instead of the adapter."}
    )
    template: str | None = field(
        default=None, metadata={"help": "The prompt, with the columns of a row in braces: '{sentence} It was'."}
    )
    prompt: str = field(
        default="prompt", metadata={"help": "The column of the prompt, a text or messages. For objectives of text."}
    )
    choices: list[str] | None = field(
        default=None,
        metadata={"help": "A candidate answer, in the order of the labels; or label=answer. Give it once for each."},
    )
    choice_column: str | None = field(
        default=None,
        metadata={
            "help": "Instead of choices: the column that holds each row's own answers, a list of strings, or a path "
            "to it: choices[text]. Spaces at the end of the template are read with the answer, so 'Answer: ' fits "
            "answers that begin without one."
        },
    )
    label: str = field(
        default="label", metadata={"help": "The column that holds the right choice, or a path to it: answer[key]."}
    )
    answer: str | None = field(
        default=None,
        metadata={"help": "The right answer, as a template: ' {answer}'. For objectives that need a likelihood."},
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "What the chat template is told, as JSON: '{\"enable_thinking\": false}'. For prompts that are "
            "messages; their columns tools and chat_template_kwargs are told too."
        },
    )
    shots: int = field(
        default=0,
        metadata={
            "help": "Demonstrations in front of each prompt: other rows with their right answers, drawn by the seed. "
            "Where the context is too short for all, the first ones go."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of prompt and answer; more are cut off on the left. Default: the model's context.",
            "least": 1,
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Load the weights as float32, bfloat16, float16 or auto. Default: float32 on a CPU, else auto."
        },
    )
    device_map: str | None = field(
        default=None,
        metadata={"help": "auto: spread the layers over all GPUs that are seen, for a model that one does not hold."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that a model from the Hub brings along."}
    )
    max_completion_length: int = field(default=64, metadata={"help": "Most tokens that are written behind a prompt."})
    temperature: float = field(
        default=0.0,
        metadata={"help": "0: the likeliest token; otherwise tokens are drawn, with the same luck for all members."},
    )
    top_p: float = field(default=1.0, metadata={"help": "Draw from the likeliest tokens that have this probability."})
    top_k: int = field(default=0, metadata={"help": "Draw from so many likeliest tokens; 0: from all."})
    stop: list[str] | None = field(
        default=None, metadata={"help": "What is written ends before this text. Give it once for each."}
    )
    reward_timeout: float | None = field(
        default=None,
        metadata={"help": "Seconds that one call of the objective may take; then the run ends. Default: no limit."},
    )
    reward_retries: int = field(
        default=0,
        metadata={
            "help": "Call again so often where a call raises or takes too long, after at most 1, 2, 4, … seconds."
        },
    )
    reward_workers: int | None = field(
        default=None,
        metadata={
            "help": "Calls of the objective at a time, in threads; each of one row where the objective is rowwise "
            "(docs/objectives.md). Default: one, or all of what is async.",
            "most": MOST_WORKERS,
        },
    )
    reward_cache: str | None = field(
        default=None,
        metadata={"help": "Keep the scores of rowwise objectives in this folder, for this run and others."},
    )
    completions_every: int = field(
        default=10,
        metadata={"help": "Show and keep prompts, completions and rewards every so many steps; 0: never.", "least": 0},
    )
    drift: bool = field(
        default=False,
        metadata={
            "help": "Log how far the model has moved from its base: KL per token of what it writes, and the weights. "
            "Keeps a copy of the base. On by itself with kl and max_kl."
        },
    )
    kl: float = field(
        default=0.0, metadata={"help": "Take so many times the KL to the base, per token, from each member's score."}
    )
    max_kl: float | None = field(
        default=None, metadata={"help": "Stop where the model's KL to the base, per token, exceeds this."}
    )
    anchor: float = field(
        default=0.0,
        metadata={"help": "Decay towards the base, times the learning rate. Keeps a copy of the tuned weights."},
    )
    base_device: str | None = field(
        default=None, metadata={"help": "Where the copy of the base stands. Default: with the model; cpu is slower."}
    )
