r"""A judge behind an HTTP endpoint as the reward. It may be slow, busy or away, and it costs money.

    python examples/http_judge.py http://127.0.0.1:8000/judge

and with a model and rows of your own:

    zoreward tune examples/http_judge.py:judge --url http://127.0.0.1:8000/judge --model … --data … \
        --reward-timeout 30 --reward-retries 4 --reward-workers 8 --reward-cache judged --output runs/judged

The endpoint is sent {"prompt": …, "completion": …} and answers {"score": 0.5, "why": "…"}; its score may be null.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from pathlib import Path

import zoreward
from zoreward import ZOConfig, ZOTrainer, get_objective, objective
from zoreward.data import load_rows

SHIPPED = Path(zoreward.__file__).parent / "quickstart"


# A row's score depends on its prompt and completion alone: so rows are asked for side by side, and answers are kept.
@objective("judge", rowwise=True)
def judge(prompts: list[str], completions: list[str], log_extra, *, url: str = "http://127.0.0.1:8000/judge"):
    """What a judge behind an HTTP endpoint says.

    Args:
        url: of the endpoint.
    """
    answers = []
    for prompt, completion in zip(prompts, completions, strict=True):
        asked = json.dumps({"prompt": prompt, "completion": completion}).encode()
        request = urllib.request.Request(url, asked, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:  # of the socket; --reward-timeout is for all of it
            answers.append(json.load(answer))
    log_extra("why", [answer.get("why") for answer in answers])
    return [answer["score"] for answer in answers]


def main(url: str, cache: str, steps: int = 10) -> ZOTrainer:
    """Tune the model that zoreward ships on what the judge says, and return the trainer."""
    rows = [{"prompt": " ".join(row["text"].split()[:3])} for row in load_rows(SHIPPED / "train.jsonl")]
    patience = {"reward_timeout": 30, "reward_retries": 4, "reward_workers": 8, "reward_cache": cache}
    sizes = {"max_steps": steps, "num_directions": 4, "per_device_train_batch_size": 4, "max_completion_length": 8}
    with tempfile.TemporaryDirectory() as folder:
        args = ZOConfig(folder, **sizes, **patience, use_cpu=True, disable_tqdm=True)
        chosen = get_objective(judge, url=url)
        trainer = ZOTrainer(str(SHIPPED / "model"), reward_funcs=chosen, args=args, train_dataset=rows)
        trainer.train()
    return trainer


if __name__ == "__main__":
    print(main(sys.argv[1], "judged").state.log_history)
