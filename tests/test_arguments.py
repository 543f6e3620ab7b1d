"""What `sketch_gpt2` can be told: every default in each of lm-eval's ways, and what it refuses, in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import words
from lm_eval._cli.utils import key_val_to_dict
from lm_eval.api.instance import Instance
from lm_eval.utils import simple_parse_args_string
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, GPTNeoXConfig

from sketch_eval import UsageError
from sketch_eval.config import CacheConfig
from sketch_eval.lm import SketchGPT2, SketchHF

DEFAULTS = {name: field.default for name, field in CacheConfig.model_fields.items()}


@pytest.mark.parametrize("read", [simple_parse_args_string, key_val_to_dict, dict], ids=lambda read: read.__name__)
@pytest.mark.parametrize("name", DEFAULTS)
def test_every_default_can_be_given_in_each_way_that_lm_eval_takes_arguments(name: str, read: Any) -> None:
    """As one string to `simple_evaluate`, on the command line, and as a dict (a YAML file's, with None and `none`)."""
    value = DEFAULTS[name]
    given = [{name: value}, {name: str(value)}] if read is dict else [f"{name}={value}", f"{name}={str(value).lower()}"]
    for one in given:
        assert CacheConfig.parse(**read(one)) == CacheConfig()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "top"}, "'aggregate_near' or 'aggregate_unweighted' (did you mean topk?)"),
        ({"strategy": "fold"}, "'aggregate_near' or 'aggregate_unweighted' (did you mean aggregate?)"),
        ({"max_cache_size": 0}, "max_cache_size=0: should be greater than or equal to 1, or None for the full cache"),
        ({"max_cache_size": 8.5}, "max_cache_size=8.5: should be a valid integer"),
        ({"max_cache_size": "None", "topk": 4}, "topk=4 needs a bounded cache"),
        ({"strategy": "aggregate", "topk": 4}, "topk=4 goes with strategy=topk"),
        ({"width": 0}, "width=0: should be greater than or equal to 1"),
        ({"decay": 1.5}, "decay=1.5: should be less than or equal to 1"),
        ({"recent": 1.5}, "recent=1.5: should be a whole number of tokens, or a fraction below 1"),
        ({"max_cache_size": 6, "sinks": 4}, "sinks=4 and recent=0.75 protect 8 pairs, more than max_cache_size=6"),
        (
            {"importance": "h2o"},
            "or 'clairvoyant'; the control h2o is importance=exact,decay=1.0,scope=head",
        ),
        (
            {"importance": "race", "conservative": True},
            "conservative=True goes with importance=count_min;",
        ),
        ({"max_cachesize": 64}, "max_cachesize=64 is not an argument of sketch_gpt2 (did you mean max_cache_size?)"),
        ({"cap": 64}, "cap=64 is not an argument of sketch_gpt2 (did you mean max_cache_size?)"),
        ({"store": "int5"}, "store='int5': should be 'float', 'float16', 'int8', 'int4', 'int3' or 'k8v4'"),
        ({"tp_plan": "auto"}, "tp_plan='auto': a layer's heads stay on one device"),
        ({"recent": float("inf")}, "recent=inf: should be a finite number"),
        ({"dtype": "foo"}, "dtype='foo' is no dtype of torch"),
        ({"backend": "seq2seq"}, "backend='seq2seq': bounded caches are for causal language models"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_do_before_a_model_is_looked_for(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        SketchGPT2(pretrained="no/such-model", **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_another_architecture_is_refused_before_its_weights_are_looked_for(tmp_path: Path) -> None:
    GPTNeoXConfig().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is a gpt_neox model, which sketch_hf takes; give a GPT-2 one"):
        SketchGPT2(pretrained=str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        SketchGPT2(pretrained=str(tmp_path))
    with pytest.raises(UsageError, match="nothing': no such folder; give the folder or the hub name of a model"):
        SketchGPT2(pretrained=str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is no model that sketch_gpt2 takes: Unrecognized model"):
        SketchGPT2(pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_map": "auto"}, "device_map='auto': lm-eval places the model; give parallelize=True"),
        ({"device": "gpu"}, "device='gpu' is no device of torch; give cpu, cuda, cuda:0 or mps"),
        ({"dtype": "int8"}, "dtype='int8' is no dtype of torch's for weights; give float32"),
        ({"batch_size": "foo"}, "batch_size='foo': give a whole number from 1 up, auto, or auto:N"),
        ({"batch_size": 0}, "batch_size=0: give a whole number from 1 up"),
        ({"tokenizer": "/no/such"}, "tokenizer='/no/such' could not be loaded: "),
        ({"delta": "/no/such"}, "delta='/no/such' could not be loaded: "),
        ({"peft": "/no/such"}, "peft='/no/such' could not be loaded: "),
        ({"peft": "a", "delta": "b"}, "peft='a' and delta='b': lm-eval adds one of them"),
        ({"max_length": 1025}, "max_length=1025: the model has 1024 positions; give 1 to 1024, or leave it out"),
        ({"max_length": "long"}, "max_length='long': the model has 1024 positions"),
        ({"max_length": True}, "max_length=True: the model has 1024 positions"),
        ({"batch_size": None}, "batch_size=None: give a whole number from 1 up"),
        ({"dtype": "float8_e4m3fn"}, "dtype='float8_e4m3fn' is no dtype of torch's for weights; give float32"),
        ({"device": "meta"}, "device='meta': torch cannot compute there ("),
        ({"quantization_config": {}}, "quantization_config={} is not an argument of sketch_gpt2"),
    ],
)
def test_what_lm_eval_would_stumble_over_is_named_before_weights_are_loaded(
    checkpoint: str, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    with pytest.raises(UsageError) as error:
        SketchGPT2(pretrained=checkpoint, **arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", [0, "0", "cuda:0", None])
def test_a_cuda_device_that_nobody_may_have_asked_for_is_the_cpu_where_there_is_none(
    checkpoint: str, device: Any
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert SketchGPT2(pretrained=checkpoint, device=device).device.type == "cpu"


def test_a_device_that_somebody_asked_for_is_never_replaced(checkpoint: str) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is such a device here")
    with pytest.raises(UsageError, match="device='cuda:7': there is no CUDA device here; give cpu"):
        SketchGPT2(pretrained=checkpoint, device="cuda:7")
    with pytest.raises(UsageError, match=r"device='mps': torch cannot compute there \(.*\); give cpu"):
        SketchGPT2(pretrained=checkpoint, device="mps")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"peft": "folder"}, "peft='folder': pretrained is a loaded model, which nothing is added to"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16': pretrained is a loaded model of float32"),
    ],
)
def test_what_a_loaded_model_would_be_left_without_is_refused(
    checkpoint: str, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sketch_eval.loading.check_arguments", lambda *_: None)  # It looks for the adapter first.
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")
    with pytest.raises(UsageError) as error:
        SketchGPT2(pretrained=model, **arguments)
    assert message in str(error.value)
    assert SketchGPT2(pretrained=model, tokenizer=checkpoint, dtype="float32").model is not None


def test_a_loaded_model_is_held_to_its_positions_and_what_is_no_model_is_refused(checkpoint: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with pytest.raises(UsageError, match="max_length=4096: the model has 1024 positions"):
        SketchGPT2(pretrained=model, max_length=4096)
    with pytest.raises(UsageError, match="pretrained=7 is no model"):
        SketchGPT2(pretrained=7)
    with pytest.raises(UsageError, match="pretrained is missing"):
        SketchHF()


def test_a_folder_without_a_tokenizer_is_refused(checkpoint: str, tmp_path: Path) -> None:
    """Its tokenizer would make no tokens, and no tokens score a perplexity of 1."""
    for file in ("config.json", "model.safetensors"):
        shutil.copy(Path(checkpoint) / file, tmp_path)
    with pytest.raises(UsageError, match=r"makes no tokens of a text|the tokenizer of pretrained=.* could not be"):
        SketchGPT2(pretrained=str(tmp_path))
    assert SketchGPT2(pretrained=str(tmp_path), tokenizer=checkpoint).tok_encode("fox")


def test_a_text_without_tokens_is_refused_and_an_empty_one_is_not(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = SketchGPT2(pretrained=checkpoint)
    assert lm.tok_encode("") == []
    monkeypatch.setattr(type(lm.tokenizer), "encode", lambda *_, **__: [])
    with pytest.raises(UsageError, match="no tokens for 'fox'"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("fox",), 0, ("t", 0, 1))])


def test_a_vocabulary_larger_than_the_embedding_is_refused(checkpoint: str, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "larger")
    lm = SketchGPT2(pretrained=checkpoint)
    lm.tokenizer.add_tokens(["<one-more>"])
    lm.tokenizer.save_pretrained(tmp_path / "larger")
    with pytest.raises(UsageError, match=r"has tokens up to \d+, but the model embeds those below \d+ only"):
        SketchGPT2(pretrained=str(tmp_path / "larger"))


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig], ids=["prompt", "prefix"])
def test_an_adapter_of_virtual_tokens_is_refused(checkpoint: str, tmp_path: Path, config: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    adapted = get_peft_model(model, config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    adapted.save_pretrained(tmp_path)
    for cap in (None, 32):
        with pytest.raises(UsageError, match="virtual tokens would stand in the cache before the text"):
            SketchGPT2(pretrained=checkpoint, peft=str(tmp_path), max_cache_size=cap)
        with pytest.raises(UsageError, match="virtual tokens would stand in the cache before the text"):
            SketchGPT2(pretrained=adapted, max_cache_size=cap)


def test_an_adapter_of_another_model_is_not_blamed_on_the_model(checkpoint: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)).save_pretrained(str(tmp_path))
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(said | {"target_modules": ["q_proj"]}))
    with pytest.raises(UsageError, match=r"peft=.* could not be added to the model: .*q_proj"):
        SketchGPT2(pretrained=checkpoint, peft=str(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 1.5},
        {"guidance_scale": 0},
        {"guidance_scale": 0.0},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
        {"penalty_alpha": 0.6, "top_k": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("cap", [None, 16])
def test_generation_with_a_second_cache_is_refused(checkpoint: str, settings: dict[str, Any], cap: int | None) -> None:
    lm = SketchGPT2(pretrained=checkpoint, max_cache_size=cap, sinks=1)
    asked = [
        Instance("generate_until", {}, (words(20), given), 0, ("t", 0, 1))
        for given in ({"max_gen_toks": 3}, {"max_gen_toks": 3, **settings})
    ]
    name, value = next(iter(settings.items()))
    with pytest.raises(UsageError, match=rf"{name}={value!r} in gen_kwargs: .*leave {name} out"):
        lm.generate_until(asked, disable_tqdm=True)
    setattr(lm.model.generation_config, name, value)
    with pytest.raises(UsageError, match=f"{name}={value!r} in the model's generation_config"):
        lm.generate_until(asked[:1], disable_tqdm=True)
    setattr(lm.model.generation_config, name, None)
    assert len(lm.generate_until(asked[:1], disable_tqdm=True)) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation_config": GenerationConfig(guidance_scale=1.5)}, "leave generation_config out"),
        ({"use_cache": True}, "use_cache=True in gen_kwargs: lm-eval sets it itself; leave it out"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True in gen_kwargs: lm-eval sets it itself"),
        ({"max_length": 2000}, "max_length=2000 in gen_kwargs: the model has 1024 positions; give 1 to 1024"),
        ({"max_gen_toks": 1024}, "max_gen_toks=1024 in gen_kwargs: the model has 1024 positions; give 1 to 1023"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 in gen_kwargs: the model has 1024 positions"),
        ({"max_gen_toks": "many"}, "max_gen_toks='many' in gen_kwargs: the model has 1024 positions; give 1 to 1023"),
    ],
)
def test_settings_that_generate_would_stumble_over_are_named(
    checkpoint: str, settings: dict[str, Any], message: str
) -> None:
    lm = SketchGPT2(pretrained=checkpoint, max_cache_size=16, sinks=1)
    with pytest.raises(UsageError) as error:
        lm.generate_until([Instance("generate_until", {}, (words(20), settings), 0, ("t", 0, 1))], disable_tqdm=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value).split("in gen_kwargs")[-1]


@pytest.mark.parametrize(
    ("arguments", "ranks"),
    [
        ({"max_cache_size": 16}, False),
        ({"max_cache_size": 17}, True),
        ({"max_cache_size": 16, "recent": 0.5}, True),
        ({"max_cache_size": 16, "topk": 15, "recent": 12}, False),
        ({"max_cache_size": 16, "topk": 15, "recent": 10}, True),
        ({"max_cache_size": None}, False),
    ],
)
def test_a_cell_that_leaves_its_importance_no_choice_says_so(
    checkpoint: str, arguments: dict[str, Any], ranks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert CacheConfig(**arguments).ranks == ranks
    SketchGPT2(pretrained=checkpoint, **arguments)
    said = [record.message for record in caplog.records if "has no choice" in record.message]
    assert len(said) == (not ranks and arguments["max_cache_size"] is not None)
