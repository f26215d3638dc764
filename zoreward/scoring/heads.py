"""What kind of model is at hand, what its classes are, and classification heads that are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from zoreward.data import PAIRS, classes_of
from zoreward.records import InputError
from zoreward.scoring.checkpoints import adapter_base, check_model_name
from zoreward.scoring.loading import Kind, load_config, model_kind

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Head:
    """What a model gives for a row.

    Args:
        kind: of the model.
        classes: a classifier's, in the order of its outputs.
        is_new: whether a classifier's head is made for this run, and not part of the checkpoint.
    """

    kind: Kind = "causal"
    classes: tuple[str, ...] = ()
    is_new: bool = False

    @property
    def reads_whole(self) -> bool:
        """Whether it reads a text as a whole, instead of going on with it."""
        return self.kind not in ("causal", PAIRS)


def head_of(
    model: nn.Module | str,
    rows: Sequence[dict[str, Any]] = (),
    *,
    head: str | None = None,
    choices: Sequence[str] | None = None,
    label: str = "label",
    trust_remote_code: bool = False,
) -> Head:
    """Return what kind of model this is, and its classes.

    Args:
        model: a folder or Hub id, or a loaded model.
        rows: those to tune on, from which the classes of a new head follow.
        head: `classifier` for a new head; None for what the checkpoint has.
        choices: the classes, if they are given.
        label: the column of labels.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ZorewardError: there is no such model, its head gives no classes, or a new head makes no sense.
    """
    config = config_of_model(model, trust_remote_code=trust_remote_code)
    kind = kind_of(model) if not isinstance(model, str) else model_kind(config)
    if head is not None:
        if not isinstance(model, str):
            raise InputError(
                "a loaded model has its head already", hint="Give its folder or Hub id, or leave head out."
            )
        if adapter_base(model) is not None:
            raise InputError("an adapter keeps no new head", hint="Give its base, or merge it first.")
        rows = list(rows)
        return Head("classifier", classes_of(rows, choices, label), is_new=True)
    if kind != "classifier":
        return Head(kind)
    names = getattr(config, "id2label", None) or {}
    classes = tuple(str(names[number]) for number in sorted(names, key=int))
    if len(classes) < 2:  # a cross-encoder, or a reward model
        return Head("ranker")
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise InputError("the model's classes do not exclude each other", hint="Take one with one class for a row.")
    return Head(kind, classes)


def check_needs(needs: str, head: Head) -> None:
    """Refuse an objective of texts for a model that writes none.

    Raises:
        InputError: it is one.
    """
    if head.reads_whole and needs == "completions":
        name = "a masked model" if head.kind == "masked" else f"a {head.kind}"
        hint = "take an objective of choices, such as accuracy, or a causal model"
        raise InputError(f"{name} writes no text, which the objective needs", hint=hint)
    if head.kind == "ranker" and needs == "likelihood":
        hint = "take an objective of choices, such as accuracy or preference"
        raise InputError("a head with one output compares answers; how likely one is, it does not say", hint=hint)


def kind_of(model: nn.Module) -> Kind:
    """Return what kind of model a loaded one is: by its class, since a config may name that of its checkpoint."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    config = getattr(inner, "config", SimpleNamespace())
    about = ("is_encoder_decoder", "is_decoder", "model_type")
    return model_kind(
        SimpleNamespace(architectures=[type(inner).__name__], **{name: getattr(config, name, None) for name in about})
    )


def config_of_model(source: Any, *, trust_remote_code: bool = False) -> Any:
    """Return a model's config: that of the base for an adapter, or the source itself where it is one.

    Args:
        source: a folder or Hub id, a loaded model, or a config.
        trust_remote_code: run the code that comes with it.

    Raises:
        ZorewardError: there is no such model, or its config cannot be read.
    """
    if not isinstance(source, str):
        return getattr(source, "config", source)
    check_model_name(source)
    return load_config(adapter_base(source) or source, trust_remote_code=trust_remote_code)
