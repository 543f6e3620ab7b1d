"""What the models can be told, checked before weights are loaded: a refusal is one line that says what would do."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, PreTrainedModel

from sketch_eval.config import CacheConfig, nearest
from sketch_eval.errors import UsageError, first_line, sentence

_HFLM_ARGUMENTS = set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs"}
_LOADING_ARGUMENTS = {
    "cache_dir", "code_revision", "force_download", "local_files_only", "low_cpu_mem_usage", "proxies", "token",
    "torch_dtype", "use_safetensors", "variant", "weights_only",
}  # fmt: skip
"""What HFLM passes on to `from_pretrained`."""

_OWN_CACHES = {
    "assistant_early_exit", "assistant_model", "cache_config", "cache_implementation", "custom_generate", "dola_layers",
    "generation_config", "guidance_scale", "max_cache_len", "negative_prompt_ids", "past_key_values", "penalty_alpha",
    "prompt_lookup_num_tokens", "use_mtp",
}  # fmt: skip
"""Settings of `generate` under which something else than the model's own cache holds keys and values, or takes tokens
back out of it."""

_LM_EVALS_OWN = ("return_dict_in_generate", "use_cache")
"""Settings of `generate` that lm-eval makes itself, and that would be given twice or break what it reads."""

_ANSWER_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for how many tokens an answer may have."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_arguments(alias: str, backend: str, arguments: dict[str, Any]) -> None:
    """Refuse arguments of HFLM's that it does not know or could not use.

    Args:
        alias: what lm-eval knows the model by.
        backend: HFLM's argument of that name.
        arguments: the others.

    Raises:
        UsageError: the first of them.
    """
    if backend not in ("default", "causal"):
        raise UsageError(f"backend={backend!r}: bounded caches are for causal language models; leave backend out")
    if arguments.get("tp_plan") is not None:
        raise UsageError(f"tp_plan={arguments['tp_plan']!r}: a layer's heads stay on one device; leave tp_plan out")
    if "device_map" in arguments:
        raise UsageError(
            f"device_map={arguments['device_map']!r}: lm-eval places the model; give parallelize=True to spread its "
            "layers over several GPUs, or device for one"
        )
    for name in ("dtype", "softmax_dtype", "mixed_precision_dtype", "torch_dtype"):
        dtype = arguments.get(name)
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype not in (None, "auto") and found not in _DTYPES:
            raise UsageError(f"{name}={dtype!r} is no dtype of torch's for weights; give float32, bfloat16 or float16")
    size = arguments.get("batch_size", 1)
    if not re.fullmatch(r"[1-9]\d*|auto(:\d+(\.\d+)?)?", str(size)):
        raise UsageError(f"batch_size={size!r}: give a whole number from 1 up, auto, or auto:N to probe N times")
    known = {*CacheConfig.model_fields, *_HFLM_ARGUMENTS, *_LOADING_ARGUMENTS}
    for name, value in arguments.items():
        if name not in known:
            raise UsageError(f"{name}={value!r} is not an argument of {alias}{nearest(name, known)}")
    _check_additions(arguments)


def _check_additions(arguments: dict[str, Any]) -> None:
    """Refuse an adapter or delta weights that cannot be had, and adapters that put tokens of their own in the cache."""
    peft, delta, revision = (arguments.get(name) for name in ("peft", "delta", "revision"))
    if peft and delta:
        raise UsageError(f"peft={peft!r} and delta={delta!r}: lm-eval adds one of them; leave the other out")
    if peft:
        from peft import PeftConfig  # Slow to import, and seldom asked for.

        try:
            config = PeftConfig.from_pretrained(peft, revision=revision)
        except Exception as error:  # Whatever a hub, a disk or a file of JSON can go wrong by.
            raise UsageError(
                f"peft={peft!r} could not be loaded: {sentence(error)} Give the name or the folder of an adapter"
            ) from error
        refuse_virtual_tokens(f"peft={peft!r}", [config])
    if delta:
        try:
            AutoConfig.from_pretrained(delta, revision=revision or "main")
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"delta={delta!r} could not be loaded: {sentence(error)} Give the name or the folder of the weights "
                "to add"
            ) from error


def refuse_virtual_tokens(what: str, configs: list[Any]) -> None:
    """Refuse prompt and prefix tuning: tokens or pairs that no text has and no cell says what to do with.

    Raises:
        UsageError: one of the adapters' configs is of such a kind.
    """
    for config in configs:
        if config.is_prompt_learning:
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise UsageError(
                f"{what} is a {kind} adapter, whose virtual tokens would stand in the cache before the text; give one "
                "that changes weights, such as LoRA"
            )


def check_loaded(model: PreTrainedModel, arguments: dict[str, Any]) -> None:
    """Refuse arguments that would change a model that is loaded already, and that HFLM leaves it without.

    Raises:
        UsageError: the first of them.
    """
    for name in ("peft", "delta", "gguf_file", "autogptq", "gptqmodel"):
        if arguments.get(name):
            raise UsageError(
                f"{name}={arguments[name]!r}: pretrained is a loaded model, which nothing is added to; give its name "
                "or folder, or one that has it already"
            )
    dtype = arguments.get("dtype")
    wanted = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if wanted not in (None, "auto", model.dtype):
        raise UsageError(
            f"dtype={dtype!r}: pretrained is a loaded model of {str(model.dtype).removeprefix('torch.')}; convert it "
            "first, and leave dtype out"
        )


def unwrap(pretrained: Any) -> Any:
    """The transformers model in a loaded one: PEFT wraps it.

    Raises:
        UsageError: it is no model, or has an adapter that a bounded cache cannot serve.
    """
    if hasattr(pretrained, "peft_config") and hasattr(pretrained, "get_base_model"):
        refuse_virtual_tokens("pretrained", list(pretrained.peft_config.values()))
        pretrained = pretrained.get_base_model()
    if not isinstance(pretrained, PreTrainedModel):
        raise UsageError(
            f"pretrained={pretrained!r} is no model; give the name or the folder of one, a loaded one, or bundled"
        )
    return pretrained


def find_device(device: Any) -> str:
    """The device to use: the one asked for, by name or by CUDA's number, or else CUDA where there is one.

    Raises:
        UsageError: torch knows no such device, or this machine has fewer.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{device}" if isinstance(device, int) or str(device).isdecimal() else str(device)
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={device!r} is no device of torch; give cpu, cuda, cuda:0 or mps") from error
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() and name in ("cuda", "cuda:0"):
            return "cpu"  # lm-eval's command line says cuda:0 where nobody asked for a device.
        if not count:
            raise UsageError(f"device={device!r}: there is no CUDA device here; give cpu")
        if (found.index or 0) >= count:
            raise UsageError(f"device={device!r}: there are {count} CUDA devices here; give cuda:0 to cuda:{count - 1}")
        return name
    try:
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        raise UsageError(f"device={device!r}: torch cannot compute there ({first_line(error)}); give cpu") from error
    return name


def check_tokenizer(tokenizer: Any, vocabulary: int | None) -> None:
    """Refuse a tokenizer that makes nothing of a text, or tokens that the model has no embedding for.

    Args:
        tokenizer: the tokenizer.
        vocabulary: rows of the model's embedding; None where they are made to fit the tokenizer.

    Raises:
        UsageError: it is such a one.
    """
    where = f"tokenizer={tokenizer.name_or_path!r}"
    if not tokenizer.encode("A text.", add_special_tokens=False):
        raise UsageError(
            f"{where} makes no tokens of a text: its folder has no tokenizer files; give tokenizer the name or the "
            "folder of the model's own"
        )
    most = max(tokenizer.get_vocab().values())
    if vocabulary is not None and most >= vocabulary:
        raise UsageError(
            f"{where} has tokens up to {most}, but the model embeds those below {vocabulary} only; give tokenizer the "
            "name or the folder of the model's own"
        )


def check_generation(settings: dict[str, Any], defaults: Any, positions: int) -> None:
    """Refuse settings of `generate` with which keys and values would be kept outside of the cell's cache.

    And those that lm-eval cannot pass on, and answers that would be longer than the model's positions.

    Args:
        settings: of a request, lm-eval's `gen_kwargs`.
        defaults: the model's `generation_config`.
        positions: tokens of the longest text, its answer included.

    Raises:
        UsageError: one of them is set, there or here.
    """
    for name in _LM_EVALS_OWN:
        if name in settings:
            raise UsageError(f"{name}={settings[name]!r} in gen_kwargs: lm-eval sets it itself; leave it out")
    for name in (*_ANSWER_LENGTHS, "max_length"):
        longest = positions if name == "max_length" else positions - 1
        length = settings.get(name)
        try:  # As lm-eval reads it: "20" is 20.
            fits = length is None or 1 <= int(length) <= longest
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise UsageError(
                f"{name}={length!r} in gen_kwargs: the model has {positions} positions; give 1 to {longest}"
            )
    for name in sorted(_OWN_CACHES):
        value = settings.get(name, getattr(defaults, name, None))
        if value is None or value is False or (name == "guidance_scale" and value == 1):
            continue
        where = "gen_kwargs" if name in settings else "the model's generation_config"
        raise UsageError(
            f"{name}={value!r} in {where}: `generate` would keep keys and values beside the cell's cache, or take "
            f"tokens back, with no bound and in no ledger; leave {name} out"
        )
