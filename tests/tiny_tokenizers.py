"""Tokenizers small enough to reason about."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "a stirring , funny film It was great",
    "one long string of cliches . It was terrible",
    "Yes or No?\nMaybe",
]


def wrap(core: Tokenizer, *, front: str = "", behind: str = "", **names: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts the special tokens `front` and `behind` around each text."""
    specials = [token for token in ("<s>", "</s>") if core.token_to_id(token) is not None]
    if front or behind:
        pairs = [(token, core.token_to_id(token)) for token in specials]
        core.post_processor = processors.TemplateProcessing(f"{front} $A {behind}".strip(), None, pairs)
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def bpe(sentences: list[str] = SENTENCES, size: int = 320, **options: str) -> PreTrainedTokenizerFast:
    """Bytes joined to a few words, split as GPT-2 does; <s> has id 0, </s> id 1."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(sentences * 3, trainer)
    return wrap(core, **options)


def unigram(sentences: list[str] = SENTENCES, size: int = 200, **options: str) -> PreTrainedTokenizerFast:
    """Pieces as SentencePiece makes them: a space becomes ▁ in front of the word, and a text begins with one."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(sentences * 3, trainer)
    return wrap(core, unk_token="<unk>", **options)


def wordpiece(sentences: list[str] = SENTENCES, size: int = 200, **options: str) -> PreTrainedTokenizerFast:
    """Small letters and pieces of words, as BERT reads; punctuation stands alone."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False)
    core.train_from_iterator(sentences * 3, trainer)
    return wrap(core, unk_token="<unk>", **options)


def letters(merges: list[tuple[str, str]], **options: str) -> PreTrainedTokenizerFast:
    """One token a letter, and the given merges. A letter without an entry gives no token."""
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *"abcd", *(left + right for left, right in merges)])}
    return wrap(Tokenizer(models.BPE(vocab, merges)), **options)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
