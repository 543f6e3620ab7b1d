"""What identifies a run: versions, commit, fingerprints; and what it took of a device's memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

COSMETIC = {
    "_from_model_config", "_name_or_path", "architectures", "base_model_name_or_path", "dtype", "id2label",
    "inference_mode", "label2id", "output_attentions", "output_hidden_states", "peft_version", "problem_type",
    "return_dict", "revision", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Settings of a config that change no number of a pass; the weights' own dtypes are in the fingerprint anyway."""


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of a model: its weights by name, dtype and value, and every setting that is not known to be cosmetic.

    The settings are those of its config, of how it generates, and of its PEFT adapters where it has some.
    """
    digest = hashlib.sha256()
    configs = [model.config.to_dict(), model.generation_config.to_diff_dict()]
    configs += [config.to_dict() for _, config in sorted(getattr(model, "peft_config", {}).items())]
    settings = [{name: value for name, value in config.items() if name not in COSMETIC} for config in configs]
    digest.update(json.dumps(settings, sort_keys=True, default=_plain).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """A setting that JSON has no word for."""
    return sorted(value) if isinstance(value, set) else str(value)


def adapters(model: Any) -> dict[str, Any]:
    """Which adapters are at work in a model and how, under `adapters`; nothing where it has none.

    The weights of all of them are in the fingerprint, but any may be chosen, switched off, merged or scaled later.
    """
    layers = {
        name: [
            sorted(layer.active_adapters),
            sorted(layer.merged_adapters),
            layer.disable_adapters,
            dict(sorted(getattr(layer, "scaling", {}).items())),
        ]
        for name, layer in model.named_modules()
        if hasattr(layer, "disable_adapters") and hasattr(layer, "merged_adapters")
    }
    if not layers:
        return {}
    return {"adapters": hashlib.sha256(json.dumps(layers, sort_keys=True, default=_plain).encode()).hexdigest()}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer: its whole definition, or its vocabulary where it is no fast one, and what it adds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "add_bos_token", "add_eos_token")
    added = {name: getattr(tokenizer, name, None) for name in (*names, "chat_template")}
    return hashlib.sha256(f"{definition}\n{json.dumps(added, sort_keys=True, default=str)}".encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package and of what decides its numbers."""
    found = {}
    for package in ("sketch-eval", "lm-eval", "torch", "transformers", "tokenizers", "datasets", "numba"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


ASIDE = (
    "calibrate",
    "commands",
    "configs",
    "grid",
    "leaderboard",
    "startup",
    "statistics",
    "sweep",
    "tasks",
    "text",
    "train",
)
"""Folders of this package that nothing between a request and its score passes through: what asks for runs, keeps them
and shows them, and what makes the texts of tasks, which `code` names with each task."""


def sources() -> str:
    """SHA-256 of this package's code that a score depends on: all of it but the folders `ASIDE`."""
    package = Path(__file__).parent
    files = (path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in ASIDE)
    return code(package, files)


def code(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of files, by their places below a folder and their bytes."""
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def commit() -> str | None:
    """Commit of the checkout that this package runs from, with `-dirty` where it was changed (in `results/` aside);
    None outside one."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    try:
        head, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changes else head


def peak_device_memory(device: torch.device) -> int | None:
    """Most bytes that torch held on a CUDA device since the process began; None on a CPU, where it does not say."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
