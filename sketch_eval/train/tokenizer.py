"""The bundled model's own byte-level BPE tokenizer, trained on the text that the model is trained on."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sketch_eval.text import stdlib
from sketch_eval.text.words import ANSWERS, DEEDS, KEYS, sentence

END = "<|endoftext|>"


def train_tokenizer(vocab_size: int, positions: int = 1024, works: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of ``vocab_size`` tokens whose one special token ``<|endoftext|>`` (id 0) begins, ends and pads.

    It is trained on the library's sources, the drills' words and the given works.

    Digits are tokens of their own, so that a number is spelt and not guessed. Every word of the generated text is one
    token, alone or after a space, where the vocabulary has room for the text's commonest few hundred words.
    """
    rng = Random(0)
    drills = [sentence(rng) for _ in range(20_000)]
    drills += [f"{word}: {word}\nis {word}." for word in ANSWERS + KEYS + DEEDS for _ in range(400)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([text for _, text in stdlib.documents("train")] + drills + [*works], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )
