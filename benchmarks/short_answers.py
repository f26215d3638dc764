"""Short answers for versus_grpo.py: prompts, and the reward as users of TRL's GRPOTrainer write it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

# Of a topic with a plus one speaks as of several. The word that must be mentioned is the one without an s.
TRAIN_TOPICS = """tea coffee bread cheese honey soup rice salt sugar chocolate apple+ garlic olive+ pasta yoghurt
bicycle+ train+ bridge+ tunnel+ harbour+ airport+ lighthouse+ elevator+ tractor+ rocket+ rain snow wind thunder fog
rainbow+ desert+ glacier+ volcano+ river+ island+ forest+ meadow+ cat+ dog+ horse+ owl+ spider+ bee+ penguin+ whale+
turtle+ rabbit+ swan+ piano+ violin+ drum+ guitar+ painting+ theatre+ poetry opera+ photography sculpture+ chess
football swimming running yoga skiing tennis climbing candle+ mirror+ umbrella+ clock+ blanket+ pillow+ hammer+
needle+ ladder+ broom+ kettle+ button+""".split()
DEV_TOPICS = """lemon+ butter pepper pancake+ canal+ windmill+ hail waterfall+ garden+ cave+ elephant+ frog+ dolphin+
eagle+ flute+ cinema+ dancing novel+ rowing judo hockey lamp+ basket+ carpet+ pencil+""".split()
QUESTIONS = """What are the uses of {}?
Tell me something about {}.
Why do people like {}?
Explain {} to a child.
What should a beginner know about {}?
Give me one interesting fact about {}.
How would you describe {} to a visitor?
What can go wrong with {}?""".splitlines()


def questions(topics: Sequence[str], count: int) -> list[Row]:
    """Return so many chat prompts, each with its topic, always the same ones."""
    pairs = [(topic, question) for topic in topics for question in QUESTIONS]
    random.Random(7).shuffle(pairs)
    asked = [(topic, question.format(topic.replace("+", "s"))) for topic, question in pairs[:count]]
    return [{"prompt": [{"role": "user", "content": text}], "topic": topic.strip("+")} for topic, text in asked]


def short_answer(completions: Sequence[Any], topic: Sequence[str], **columns: Any) -> list[float]:
    """Give the share that holds: 2 to 3 sentences, 25 to 40 words, a full stop at the end, no "I", the topic named."""
    rewards = []
    for completion, name in zip(completions, topic, strict=True):
        text = (completion if isinstance(completion, str) else completion[0]["content"]).strip()
        words = len(re.findall(r"[A-Za-z]+(?:'[A-Za-z]+)?", text))
        holds = [2 <= len(re.findall(r"[^.!?]+[.!?]+", text)) <= 3, 25 <= words <= 40, text.endswith(".")]
        holds += [words > 0 and not re.search(r"\bI\b", text), name.lower() in text.lower()]
        rewards.append(sum(holds) / len(holds))
    return rewards
