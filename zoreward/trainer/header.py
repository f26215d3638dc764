"""The header of a run: made, and compared with that of a run that is to go on with what is at hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from zoreward.config import ZOArguments
from zoreward.data import at_revision
from zoreward.journal import fingerprint
from zoreward.journal.fingerprint import fingerprint_of, forward_config, other_config, short_value, without_address
from zoreward.members import adapter_options, first_spread
from zoreward.records import Example, InputError
from zoreward.registry import Objective, code_of
from zoreward.trainer.ready import START_NAME, Ready

if TYPE_CHECKING:
    from zoreward.trainer.options import ZOConfig

# Fields of TrainingArguments that do not touch the steps, or how they begin: what is logged, evaluated, saved and sent
# where. Of our own options each says so itself. Whatever is not named must be what it was.
_MAY_CHANGE = (
    *("eval_", "do_eval", "per_device_eval_batch_size", "log", "report_to", "run_name", "save_"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "disable_tqdm", "project"),
    *("trackio_", "hub_", "push_to_hub"),
    *("resume_from_checkpoint", "skip_memory_metrics", "dataloader_num_workers", "dataloader_prefetch_factor"),
    *("dataloader_persistent_workers", "dataloader_pin_memory", "restore_callback_states_from_checkpoint"),
    "enable_jit_checkpoint",
    *(option.name for option in fields(ZOArguments) if option.metadata.get("may_change")),
)
_LENGTH = ("max_steps", "num_train_epochs")
_HINT = "Resume it with what it began with (config.yaml), or start another run in a new folder."


def header_of(
    ready: Ready,
    objective: Objective,
    method: Any,
    args: ZOConfig,
    tune_rows: Sequence[Example],
    eval_rows: Sequence[Example] | None,
) -> dict[str, Any]:
    """Return the header of a run's journal: all that the run depends on.

    Args:
        ready: the model, which stands at the weights that the run begins with.
        objective: the objective.
        method: the method, a dataclass.
        args: completed options.
        tune_rows: those to tune on.
        eval_rows: those to choose by, or None.
    """
    import transformers

    model, limits, blocks, head = ready.model, ready.tuned.limits, ready.tuned.blocks, {}
    if ready.new_weights:  # what makes the run's head again, beside its seed
        head = {"classes": list(ready.head.classes), "weights": ready.new_weights, "spread": first_spread(model)}
    return {
        "objective": objective.name,
        "options": options_of(objective),
        "method": method.for_header(args.method),
        "model": at_revision(model.name_or_path, getattr(model, "hub_revision", None)),
        **({"start": START_NAME} if ready.start else {}),  # in the run folder, wherever that is
        "dtype": ready.dtype,
        "fingerprint": fingerprint_of(ready.division.wholes(model)) if ready.division else fingerprint(model),
        "config": args.changed(),
        "code": code_of(objective),
        "model_config": forward_config(model),
        "rows": {"tune": digest_of(tune_rows), "evaluate": digest_of(eval_rows)},
        **({"adapter": adapter_options(model)} if ready.makes_adapter else {}),
        **({"head": head} if head else {}),
        "streams": ready.tuned.streams,
        **({"limits": limits} if limits else {}),
        **({"blocks": blocks} if blocks else {}),
        "versions": {
            "zoreward": version("zoreward"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def unit_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the unit of work of a run, by its header: that of one process, unless ranks began it; 0.1.0 wrote none."""
    return {"ranks": 1, "split": "members", **(header.get("unit") or {})}


def digest_of(examples: Sequence[Example] | None) -> str | None:
    """Return a SHA-256 of rows as they were made ready: of every column, and of the tokens; None without rows."""
    if examples is None:
        return None
    digest = hashlib.sha256()
    for example in examples:
        made = [example.row, example.reference, example.prompt_tokens, example.candidate_tokens]
        digest.update(json.dumps(made, default=without_address, sort_keys=True).encode())
    return digest.hexdigest()


def options_of(objective: Objective) -> dict[str, Any]:
    """Return the options of an objective, or of all parts of a weighted sum."""
    found = dict(objective.values)
    for weight, part in objective.parts:
        found |= {
            f"{part.name}.weight": weight,
            **{f"{part.name}.{name}": value for name, value in part.values.items()},
        }
    return found


def refuse_other_run(folder: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run that was made with something else.

    What may differ: where and how often there is logging, evaluating and saving; the number of steps where the learning
    rate does not depend on it; dev rows, where there were none.

    Args:
        folder: the run's, for the message.
        then: the header of its journal.
        now: the header that a new run would have.

    Raises:
        InputError: the message says what differs.
    """
    now = json.loads(json.dumps(now, default=str))
    _compare(folder, "objective", then.get("objective"), now.get("objective"))
    if name := (then.get("method") or {}).get("name"):  # before its options, which are others then
        _compare(folder, "method", name, now["method"].get("name"))
    for part in ("options", "method", "config", "adapter"):
        _compare_all(folder, part, then.get(part) or {}, now.get(part) or {})
    _compare_code(folder, then.get("code") or {}, now.get("code") or {})
    _compare(folder, "dtype", then.get("dtype"), now.get("dtype"))
    for name, rows in (then.get("rows") or {}).items():
        if rows is not None and rows != now["rows"].get(name):
            _refuse(folder, f"was made with other rows to {name} on")
    if then["streams"] != now["streams"]:
        _refuse(folder, "tunes other weights")
    if then["fingerprint"] != now["fingerprint"]:
        name = str(then.get("model") or "")
        _refuse(folder, "began with other weights", f"It began with {name!r}, as it was then." if name else _HINT)
    if then.get("limits") != now.get("limits"):  # of the same weights: another zoreward's
        _refuse(folder, "lets other weights rest", "Take the zoreward that it began with, or start another run.")
    _compare_model(folder, then, now)


def _compare_all(folder: str, part: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    for name in sorted(then.keys() | now.keys()):
        if part == "method" and name == "rows":  # those of a batch, which is compared with the other options
            continue
        if part == "config" and (name.startswith(_MAY_CHANGE) or (name in _LENGTH and not _length_matters(then))):
            continue
        _compare(folder, name, then.get(name), now.get(name))


def _compare_code(folder: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse edited rewards. A run of an earlier zoreward does not know its code, and some code cannot be known."""
    for name, code in then.items():
        if code and now.get(name) and code != now[name]:
            hint = "Put the code back as it was to go on. The new code makes another run: begin it in a new folder."
            _refuse(folder, f"was made with other code of the objective {name!r}", hint)


def _compare_model(folder: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse an edited config of the model."""
    releases = [(header.get("versions") or {}).get("transformers") for header in (then, now)]
    configs = [header.get("model_config") or {} for header in (then, now)]
    if told := other_config(*configs, common=releases[0] != releases[1]):
        hint = "Put the config back as it was to go on. Another config makes another run: begin it in a new folder."
        _refuse(folder, f"was made with another config of the model: {told}", hint)


def _compare(folder: str, name: str, then: Any, now: Any) -> None:
    if then != now:
        _refuse(folder, f"was made with {name}={short_value(then)}, not {short_value(now)}")


def _refuse(folder: str, how: str, hint: str = _HINT) -> NoReturn:
    raise InputError(f"the run in '{folder}' {how}", hint=hint)


def _length_matters(config: dict[str, Any]) -> bool:
    """Whether the learning rate of a step depends on how many there are."""
    schedule, warmup = config.get("lr_scheduler_type", "constant"), config.get("warmup_steps", 0)
    if schedule == "constant":
        return False
    return (
        schedule not in ("constant_with_warmup", "inverse_sqrt") or 0 < warmup < 1 or bool(config.get("warmup_ratio"))
    )
