"""`--via reward`: preferences become a reward, and their prompts what the model answers."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoreward.cli.prepare import quiet_transformers, select_device
from zoreward.cli.task_rows import TuningRows
from zoreward.config import Prompting, TuneOptions, part_of
from zoreward.data import prompts_of_preferences
from zoreward.neighbours.of_typer import source_of
from zoreward.records import InputError
from zoreward.registry import Objective

if TYPE_CHECKING:
    from zoreward.scoring import RewardHead

HEAD_NAME = "reward_head"
# Nats a token: beyond it a reward is soon hacked (docs/lab/log.md).
MAX_KL = 0.1


def with_reward_defaults(context: typer.Context, options: TuneOptions) -> TuneOptions:
    """Return the options with what is otherwise by default where a reward is made of preferences.

    LoRA, whose base costs no memory, unless the model has an adapter of its own; samples; and a bound of their KL.

    Raises:
        InputError: what writes nothing, or has no base to be read, is asked for.
    """
    quiet_transformers()
    from zoreward.scoring import adapter_base, head_of

    kind = head_of(options.model, trust_remote_code=options.trust_remote_code).kind
    if kind != "causal" or options.head is not None:
        raise InputError("--via reward is for causal language models, which write", hint="leave --via and --head out")
    if options.tune == "prefix":
        raise InputError("--via reward takes no prefix", hint="leave --tune out: lora is what is tuned by default")
    left_out = [name for name in ("tune", "temperature") if source_of(context, name) in ("", "DEFAULT")]
    changes: dict[str, Any] = {"max_kl": MAX_KL} if options.max_kl is None else {}
    if "temperature" in left_out:
        changes["temperature"] = 1.0
    if "tune" in left_out and adapter_base(options.model) is None:
        changes["tune"] = "lora"
    return dataclasses.replace(options, **changes)


def via_reward(
    objective: Objective, rows: TuningRows, options: TuneOptions, digest: str
) -> tuple[Objective, TuningRows, RewardHead | None]:
    """Return the reward that takes the place of preferences, rows with their prompts, and the head if one is fitted.

    A head that is in the run folder is taken from there, where the run goes on.

    Args:
        objective: of preferences.
        rows: preferences.
        options: of the command.
        digest: what tells these rows from others.

    Raises:
        ZorewardError: several objectives are summed; or there are too few rows, or no reward model.
    """
    if objective.parts:
        raise InputError("--also adds nothing to --via reward", hint="leave --also out")
    given: Objective | None = objective.function.given_reward()  # type: ignore[attr-defined]
    values, head = dict(objective.values), None
    if given is None:
        of: dict[str, Any] = {"rows_digest": digest, "model": options.model}
        begun = options.resume and Path(options.output, "journal.jsonl").exists()
        head = load_head(options.output, **of) if begun else None
        head = head or _fitted(rows, options, of)
        print(_told(head.about))
        values["head"] = head.digest
    reward = head or given.function  # type: ignore[union-attr]
    rowwise = given is not None and given.rowwise
    prompting = part_of(Prompting, options)
    train, dev, test = (own and prompts_of_preferences(own, prompting) for own in (rows.train, rows.dev, rows.test))
    made = dataclasses.replace(
        objective, needs="completions", function=reward, values=values, range=None, rowwise=rowwise
    )
    return made, TuningRows(train or [], dev, rows.shots, test), head


def _fitted(rows: TuningRows, options: TuneOptions, of: dict[str, Any]) -> RewardHead:
    """Load the model, read what it holds of the answers, fit a head, and say how it orders pairs that it was not
    fitted on."""
    start, device, trust = time.perf_counter(), select_device(options.device), options.trust_remote_code
    from zoreward.scoring import (
        Base,
        adapter_base,
        end_tokens_of,
        engine_of,
        examples_of,
        fit_head,
        length_limit,
        load_model,
        load_tokenizer,
        preference_states,
        prepare_tokenizer,
    )

    tokenizer = prepare_tokenizer(load_tokenizer(options.model, trust_remote_code=trust))
    limit = length_limit(options.max_length, options.model, trust_remote_code=trust)
    prompting = part_of(Prompting, options, max_length=limit)
    train, dev = (
        examples_of(own, tokenizer, "choices", prompting, max_new_tokens=0) if own else []
        for own in (rows.train, rows.dev)
    )
    place: dict[str, Any] = {"dtype": options.dtype, "device": device, "device_map": options.device_map}
    model = load_model(options.model, **place, trust_remote_code=trust).eval()
    reader, ends = engine_of(model, tokenizer.pad_token_id), end_tokens_of(model, tokenizer)
    base = Base(model, adapter=adapter_base(options.model) is not None)
    states = [preference_states(reader, base, own, ends) if own else None for own in (train, dev)]
    assert states[0] is not None
    head = fit_head(states[0], train)
    about = {**head.about, **of, "pairs": states[0].shape[1] == 2, "seconds": round(time.perf_counter() - start, 1)}
    if states[1] is not None:
        about |= {"dev_rows": len(dev), "dev": head.right(states[1], [example.reference for example in dev])}
    return dataclasses.replace(head, about=about)


def _told(about: dict[str, Any]) -> str:
    what, does = ("pairs", "orders") if about["pairs"] else ("answers", "judges")
    by_folds = f"{about['cv']:.1%} in cross-validation"
    held_out = (
        f"{about['dev']:.1%} of {about['dev_rows']:,} dev {what} rightly ({by_folds})" if "dev" in about else by_folds
    )
    fitted = f"fitted on {about['rows']:,} in {about['seconds']} s, C {about['C']:g}"
    return f"reward head: {does} {held_out}; {fitted}"


def save_head(head: RewardHead, folder: str | Path) -> None:
    """Write a head into a run folder.

    Raises:
        StorageError: it cannot be written.
    """
    import numpy as np
    from safetensors.numpy import save

    from zoreward.journal.disk import write_whole
    from zoreward.trainer.resuming import told_where

    tensors = save({"weights": head.weights, "bias": np.array([head.bias])})
    text = json.dumps(head.about, indent=1).encode()
    with told_where(str(folder)):
        write_whole(Path(folder, f"{HEAD_NAME}.json"), lambda file: file.write(text))
        write_whole(Path(folder, f"{HEAD_NAME}.safetensors"), lambda file: file.write(tensors))


def load_head(folder: str | Path, **of: Any) -> RewardHead | None:
    """Return the head in a run folder; None where there is none, or one of something else.

    Args:
        folder: the run's.
        of: what must be said of it.

    Raises:
        InputError: it is damaged.
    """
    from safetensors.numpy import load_file

    from zoreward.scoring import RewardHead

    path = Path(folder, f"{HEAD_NAME}.safetensors")
    if not path.exists():
        return None
    try:
        about = json.loads(path.with_suffix(".json").read_bytes())
        tensors = load_file(path)
        head = RewardHead(tensors["weights"], float(tensors["bias"][0]), about)
        return head if all(about.get(name) == value for name, value in of.items()) else None
    except Exception as error:  # safetensors has its own
        hint = "remove it: the head is then fitted again"
        raise InputError(f"{path} is damaged", hint=hint) from error
