"""How a model comes to lm-eval: loaded as HFLM loads it, and refused before its weights are, in one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

from lm_eval.models.huggingface import HFLM

from sketch_eval import attention, bundled
from sketch_eval.arguments import check_arguments, check_loaded, check_tokenizer, find_device, unwrap
from sketch_eval.cache import check_cell
from sketch_eval.config import CacheConfig, nearest
from sketch_eval.errors import UsageError, sentence
from sketch_eval.families import FAMILIES, check
from sketch_eval.ranking import check_weights

_HARMLESS = {"batch_size", "max_batch_size", "logits_cache", "max_cpu_memory", "max_memory_per_gpu", "offload_folder"}
"""Arguments of HFLM that decide no score."""

_CPU_BATCH = 8
"""What batch_size=auto is on a CPU."""

_log = logging.getLogger(__name__)


class LoadedLM(HFLM):
    """A model of a known family, with the cell that its cache is to be held to.

    Args:
        pretrained: a model by hub name or folder, a loaded one (with a PEFT adapter or without), or one of those in
            this package by name (`bundled.NAMES`).
        backend: `causal`, or `default`, which is the same here.
        device: as in HFLM, or the number of a CUDA device; by default CUDA where there is one, else the CPU.
        **arguments: those of `CacheConfig`, and HFLM's own.

    Raises:
        UsageError: a bad argument, a model that is of no known family or cannot be had, a tokenizer that is not its
            own; before any weights are loaded.

    Attributes:
        cell: the cell.
        transformer: transformers' model, without what PEFT wraps around it.
    """

    alias: ClassVar[str]
    """What lm-eval knows the model by."""
    families: ClassVar[tuple[str, ...]] = tuple(FAMILIES)
    """Names in `families.FAMILIES` of the models that it takes."""

    def __init__(
        self, pretrained: Any = None, backend: str = "default", device: str | int | None = None, **arguments: Any
    ) -> None:
        given = {name: arguments.pop(name) for name in list(arguments) if name in CacheConfig.model_fields}
        self.cell = CacheConfig.parse(**given)
        check_arguments(self.alias, backend, arguments)
        if pretrained is None:
            raise UsageError("pretrained is missing: give the name or the folder of a model, or pretrained=bundled")
        device = find_device(device)
        self._adapted = bool(arguments.get("peft"))
        self._options = {name: str(value) for name, value in sorted(arguments.items()) if name not in _HARMLESS}
        self._length_asked = arguments.get("max_length")
        if isinstance(pretrained, str):
            if not arguments.get("gguf_file"):  # It has the config in itself.
                _check_folder(pretrained)
        else:
            model = unwrap(pretrained)
            check(model.config, self.families, self._length_asked)
            check_cell(model.config, self.cell)
            check_loaded(model, arguments)
        try:
            super().__init__(pretrained=bundled.resolve(pretrained), backend="causal", device=device, **arguments)
        except OSError as error:
            raise UsageError(
                f"pretrained={pretrained!r}{nearest(str(pretrained), bundled.NAMES)} could not be loaded: "
                f"{sentence(error)} Check the name, the other arguments and the network, or use pretrained=bundled, "
                "which is in this package"
            ) from error
        self.transformer = unwrap(self.model)
        if self.cell.max_cache_size is not None:
            attention.enable(self.transformer)
            if self.cell.fitted:
                check_weights(self.transformer)
            if not self.cell.ranks:
                _log.warning(self.cell.no_choice)

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """HFLM's on a device whose memory it can fill; a CPU would spend minutes on probes that find no limit."""
        if self.device.type == "cpu":
            return min(_CPU_BATCH, self.max_batch_size)
        return super()._detect_batch_size(requests, pos)

    def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> int:
        """HFLM's, which divides by zero where batch_size=auto:N asks for more probes than there are requests."""
        asked: float = self.batch_schedule  # type: ignore[has-type]
        self.batch_schedule = min(asked, len(n_reordered_requests))
        try:
            return super()._batch_scheduler(pos, n_reordered_requests)
        finally:
            self.batch_schedule = asked

    def _get_config(self, pretrained: str, **arguments: Any) -> None:
        """HFLM's; models of other families are refused here, before their weights are loaded."""
        try:
            super()._get_config(pretrained, **arguments)
        except ValueError as error:
            raise UsageError(
                f"pretrained={pretrained!r} is no model that {self.alias} takes: {sentence(error)} Give the name or "
                "the folder of one, or use pretrained=bundled, which is in this package"
            ) from error
        check(self._config, self.families, self._length_asked)
        check_cell(self._config, self.cell)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **arguments: Any) -> None:
        """HFLM's, held to the model; an adapter by name may bring tokens, for which HFLM enlarges the embedding."""
        try:
            super()._create_tokenizer(pretrained, tokenizer, **arguments)
        except (OSError, ValueError, TypeError, KeyError, AssertionError) as error:
            what = f"tokenizer={tokenizer!r}" if tokenizer else f"the tokenizer of pretrained={pretrained!r}"
            raise UsageError(
                f"{what} could not be loaded: {sentence(error)} Give tokenizer the name or the folder of the model's "
                "own"
            ) from error
        check_tokenizer(self.tokenizer, None if self._adapted else self._config.vocab_size)

    def _create_model(self, *args: Any, **arguments: Any) -> None:
        """HFLM's; what fails after the model itself is there is the fault of what is added to it."""
        try:
            super()._create_model(*args, **arguments)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            added = next((name for name in ("peft", "delta") if arguments.get(name)), None)
            if added is None or not hasattr(self, "_model"):
                raise
            raise UsageError(
                f"{added}={arguments[added]!r} could not be added to the model: {sentence(error)} Give one that was "
                "made for it"
            ) from error


def _check_folder(pretrained: str) -> None:
    """Refuse a path that leads to no model; what may be a hub's name is left to transformers."""
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"pretrained={pretrained!r} holds no config.json; give a folder that save_pretrained wrote"
            )
    elif folder.is_absolute() or pretrained.startswith("."):
        raise UsageError(f"pretrained={pretrained!r}: no such folder; give the folder or the hub name of a model")
