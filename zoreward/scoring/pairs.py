"""Encoder–decoders: the encoder reads prompts, padded on the right, and the decoder the answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from zoreward.records import InputError
from zoreward.scoring.devices import repeated

if TYPE_CHECKING:
    from zoreward.scoring.reader import Reader

Tokens = tuple[int, ...]


def start_tokens(model: Any) -> Tokens:
    """Return what the decoder reads in front of an answer: its start token, and BOS where the checkpoint forces one.

    Raises:
        InputError: the checkpoint does not say what the decoder begins with.
    """
    settings = (getattr(model, "generation_config", None), model.config)

    def named(name: str) -> Any:
        return next((found for one in settings if (found := getattr(one, name, None)) is not None), None)

    start, forced = named("decoder_start_token_id"), named("forced_bos_token_id")
    start = named("bos_token_id") if start is None else start
    if not isinstance(start, int):
        hint = "Set decoder_start_token_id in its config.json."
        raise InputError(f"{type(model).__name__} does not say what its decoder begins with", hint=hint)
    return (start,) if forced in (None, start) else (start, int(forced))


def on_the_right(
    sequences: Sequence[Tokens], filling: int, members: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences padded on the right, once for each member, and 0 where they are padded: (M·N, longest) each."""
    width = max(map(len, sequences))
    padded = [[*tokens, *[filling] * (width - len(tokens))] for tokens in sequences]
    mask = [[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in sequences]
    return repeated(padded, members, device), repeated(mask, members, device)


def pair_logits(
    reader: Reader, prompts: Sequence[Tokens], answers: Sequence[tuple[int, Tokens]], members: int
) -> torch.Tensor:
    """Return the logits of each token of each answer: (M·A, longest, V), those of a member together.

    A prompt goes through the encoder once for all its answers.

    Args:
        reader: an encoder–decoder, showing its members.
        prompts: N prompts.
        answers: A answers, each with the number of its prompt.
        members: M.
    """
    lengths = {len(tokens) for tokens in prompts}
    if reader.pads or len(lengths) == 1:
        return _padded_logits(reader, prompts, answers, members)
    width = max(len(tokens) for _, tokens in answers)
    found = torch.empty(0)
    for length in sorted(lengths):
        own = [n for n, tokens in enumerate(prompts) if len(tokens) == length]
        places = [a for a, (n, _) in enumerate(answers) if n in own]
        some = [(own.index(answers[a][0]), answers[a][1]) for a in places]
        part = _padded_logits(reader, [prompts[n] for n in own], some, members)
        if not len(found):
            found = part.new_zeros(members * len(answers), width, part.shape[-1])
        found[[m * len(answers) + a for m in range(members) for a in places], : part.shape[1]] = part
    return found


def _padded_logits(
    reader: Reader, prompts: Sequence[Tokens], answers: Sequence[tuple[int, Tokens]], members: int
) -> torch.Tensor:
    from transformers.modeling_outputs import BaseModelOutput

    model: Any = reader.model
    device = next(model.parameters()).device
    ids, mask = on_the_right(prompts, reader.pad_token_id, members, device)
    hidden = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    origin = [m * len(prompts) + n for m in range(members) for n, _ in answers]
    read, _ = on_the_right(
        [(*reader.start, *tokens[:-1]) for _, tokens in answers], reader.pad_token_id, members, device
    )
    logits: torch.Tensor = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden[origin]),
        attention_mask=mask[origin],
        decoder_input_ids=read,
        use_cache=False,
    ).logits
    return logits[:, len(reader.start) - 1 :]
