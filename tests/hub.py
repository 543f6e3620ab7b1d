"""A hub cache in a folder: what `HF_HOME` holds after downloads that cannot be made here."""

from __future__ import annotations

import shutil
from pathlib import Path

from datasets import DatasetInfo, Features, SplitDict, SplitInfo, Value, Version
from datasets.arrow_writer import ArrowWriter
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast, set_seed

REVISION = "0" * 39 + "1"
END = "<|endoftext|>"


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A byte-level tokenizer of up to 320 tokens, the first of which begins and ends texts."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(texts, vocab_size=320, special_tokens=[END])
    words.save_model(str(folder))
    GPT2TokenizerFast.from_pretrained(folder).save_pretrained(folder)


def write_model(folder: Path, texts: list[str]) -> None:
    """A random GPT-2 of 1024 positions, with a tokenizer of its own."""
    write_tokenizer(folder, texts)
    tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(END)
    set_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_layer": 2, "n_embd": 32, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2, bos_token_id=end, eos_token_id=end))
    model.save_pretrained(folder)


def add_model(home: Path, name: str, folder: Path) -> None:
    """Put a model folder into the cache under a hub name."""
    base = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, base / "snapshots" / REVISION)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(REVISION)


def add_dataset(home: Path, name: str, config: str, column: str, splits: dict[str, list[str]]) -> None:
    """Put a dataset with one column of texts into the cache under a hub name, as `datasets` reads it offline."""
    owner, short = name.split("/")
    folder = home / "datasets" / f"{owner}___{short}" / config / "0.0.0" / REVISION
    folder.mkdir(parents=True)
    features, infos = Features({column: Value("string")}), SplitDict(dataset_name=short)
    for split, texts in splits.items():
        with ArrowWriter(path=str(folder / f"{short}-{split}.arrow"), features=features) as writer:
            for text in texts:
                writer.write({column: text})
            count, size = writer.finalize()
        infos.add(SplitInfo(name=split, num_bytes=size, num_examples=count, dataset_name=short))
    about = {"builder_name": "parquet", "dataset_name": short, "config_name": config, "version": Version("0.0.0")}
    DatasetInfo(features=features, splits=infos, **about).write_to_directory(str(folder))


WORDS = "the quick brown fox jumps over a lazy dog while seven old wizards mix strange black potions quietly".split()


def words(count: int, start: int = 0, step: int = 5) -> str:
    return " ".join(WORDS[(start + step * i + i // 7) % len(WORDS)] for i in range(count))
