"""Contract under test: an adapter of a quantised base is tuned, saved, scored and replayed; what is quantised is no
floating-point weight of ours, whatever it says, and is known by its bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

from conftest import random_model
from zoreward.cli import main
from zoreward.journal import fingerprint
from zoreward.members import adapted, lora_config, tuned_weights
from zoreward.records import InputError
from zoreward.scoring import engine_of, evaluate
from zoreward.trainer import ZOConfig, ZOTrainer, ready

ROWS = [{"text": f"a {word} film", "label": i % 2} for i, word in enumerate("bad good dull great awful lovely".split())]
PROMPT = ["--data", "rows.jsonl", "--template", "{text} it was", "--choice", " not", "--choice", " very"]
BACKENDS = {
    "bitsandbytes, 8 bits": ("bitsandbytes", lambda: hf.BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes, 4 bits": ("bitsandbytes", lambda: hf.BitsAndBytesConfig(load_in_4bit=True)),
    "torchao": ("torchao", lambda: hf.TorchAoConfig(_int8())),
}


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_of_a_quantised_checkpoint_is_tuned_scored_and_replayed(
    backend: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, config = BACKENDS[backend]
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    size = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3}
    hf.LlamaForCausalLM(hf.LlamaConfig(**size, **heads)).save_pretrained("plain")
    quantised = hf.AutoModelForCausalLM.from_pretrained("plain", quantization_config=config(), dtype=torch.float32)
    quantised.save_pretrained("base")
    tokenizer.save_pretrained("base")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def done(*words: str) -> dict[str, Any]:
        assert main([*words, "--json", "--device", "cpu"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    tune = ["tune", "neg-cross-entropy", "--model", "base", *PROMPT, "--eval-data", "rows.jsonl", "--tune", "lora"]
    found = done(*tune, "--steps", "20", "--lr", "0.03", "--output", "run")
    base = evaluate("base", "neg-cross-entropy", ROWS, template="{text} it was", choices=[" not", " very"])
    again = done("eval", "neg-cross-entropy", "--model", "run/model", *PROMPT)
    # bitsandbytes: of 8 bits a layer takes the outliers of a whole batch out, of 4 bits a CPU takes products in
    # bfloat16; batches may be cut in another way. 2^-8 of logits of size 10 is 0.04.
    tolerance = 1e-5 if backend == "torchao" else 0.04
    assert again["score"] == pytest.approx(found["score"], abs=tolerance)
    assert abs(found["score"] - base.score) > 3 * tolerance
    assert main(["replay", "run", "--model", "base", "--output", "again", "--device", "cpu"]) == 0
    written = [load_file(f"{folder}/adapter_model.safetensors") for folder in ("run/model", "again")]
    assert written[0].keys() == written[1].keys() and len(written[0]) == 8
    assert all(torch.equal(weight, written[1][name]) for name, weight in written[0].items())


# Without the libraries: what theirs do that plain tensors and layers do not.


class Scaled(torch.Tensor):
    """Integers and a scale that say they are float32, as torchao's weights do; no operation is known."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, scale: torch.Tensor) -> Scaled:
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)

    def __init__(self, numbers: torch.Tensor, scale: torch.Tensor):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Scaled(args[0].numbers, args[0].scale)
        raise NotImplementedError(str(func))


class ScaledLinear(nn.Module):
    def __init__(self, numbers: torch.Tensor, scale: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(Scaled(numbers, scale), requires_grad=False)
        self.norm = nn.Parameter(torch.ones(3))


def test_a_weight_of_integers_that_says_it_is_floating_point_is_known_by_them_and_not_tuned() -> None:
    numbers, scale = torch.arange(6, dtype=torch.int8).view(2, 3), torch.ones(2)
    one, same = (ScaledLinear(numbers.clone(), scale.clone()) for _ in range(2))
    assert one.weight.is_floating_point()
    assert list(tuned_weights(one).weights) == ["norm"]
    others = [ScaledLinear(numbers + 1, scale), ScaledLinear(numbers, 2 * scale)]
    assert fingerprint(one) == fingerprint(same)
    assert len({fingerprint(model) for model in (one, *others)}) == 3


class WholeBatchLinear(nn.Linear):
    """Rounds what it is given to 8 bits of the largest number of the whole batch, all its tokens together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax() / 127
        return super().forward((x / scale).round() * scale)


def test_activations_that_are_quantised_together_are_not_taken_for_a_look_ahead() -> None:
    model = random_model("llama")
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WholeBatchLinear
    with pytest.raises(InputError, match="sees the tokens behind"):
        engine_of(model, 0)
    model.is_quantized = True
    assert engine_of(adapted(model, lora_config(model, 4, 8), 0), 0).pads
    looking = random_model("llama")
    looking.is_quantized = True
    forward = looking.forward
    embed = looking.model.embed_tokens

    def both_ways(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        x = embed(input_ids)
        return forward(inputs_embeds=x + x.flip(1).cumsum(1).flip(1), **kwargs)

    looking.forward = both_ways
    with pytest.raises(InputError, match="sees the tokens behind"):
        engine_of(looking, 0)


@pytest.mark.parametrize(
    ("changes", "error", "hint"),
    [
        ({}, "a quantised model is tuned through an adapter", "tune=lora"),
        ({"tune": "lora", "merge": True}, "not merged into quantised weights", "Leave merge out"),
    ],
)
def test_what_cannot_be_done_with_a_quantised_checkpoint_is_refused_before_it_is_read(
    changes: dict, error: str, hint: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((tiny_model_dir / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    folder = tmp_path / "base"
    folder.mkdir()
    for file in tiny_model_dir.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(ready, "load_model", lambda *args, **kwargs: pytest.fail("the weights are read"))
    asked = {"template": "{text} it was", "choices": [" not", " very"], "use_cpu": True}
    with pytest.raises(InputError, match=error) as caught:
        ZOTrainer(
            str(folder),
            objective="accuracy",
            args=ZOConfig(str(tmp_path / "run"), **asked, **changes),
            train_dataset=ROWS,
        )
    assert hint in caught.value.hint
    assert not (tmp_path / "run").exists()
