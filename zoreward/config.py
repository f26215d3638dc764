"""The options of a run that are not Hugging Face's own. Free of torch: the command line reads them for its help."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ZOArguments:
    """What `ZOConfig` adds to `transformers.TrainingArguments`. Every field is also an option of `zoreward tune`.

    Example:
        >>> ZOArguments(eps=5e-3, template="{sentence} It was", choices=[" terrible", " great"]).label
        'label'
    """

    eps: float = field(
        default=1e-3, metadata={"help": "ε, how far the two members of a couple stand from the weights."}
    )
    num_directions: int = field(default=1, metadata={"help": "Directions a step (K); each costs two members."})
    template: str | None = field(
        default=None, metadata={"help": "The prompt, with the columns of a row in braces: '{sentence} It was'."}
    )
    choices: list[str] | None = field(
        default=None,
        metadata={"help": "A candidate answer, in the order of the labels; or label=answer. Give it once for each."},
    )
    choice_column: str | None = field(
        default=None,
        metadata={
            "help": "Instead of choices: the column that holds each row's own answers, a list of strings. Spaces at "
            "the end of the template are read with the answer, so 'Answer: ' fits answers that begin without one."
        },
    )
    label: str = field(default="label", metadata={"help": "The column that holds the right choice."})
    answer: str | None = field(
        default=None,
        metadata={"help": "The right answer, as a template: ' {answer}'. For objectives that need a likelihood."},
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
        metadata={"help": "Tokens of prompt and answer; more are cut off on the left. Default: the model's context."},
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Load the weights as float32, bfloat16, float16 or auto. Default: float32 on a CPU, else auto."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that a model from the Hub brings along."}
    )
