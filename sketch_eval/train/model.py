"""The bundled models' shapes, and the weights that their training begins with."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from sketch_eval.train.settings import Settings

ROTARY_BASE = 500_000.0  # so that a quarter of a head's channels hardly turn over 4096 positions


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of the settings' shape, of random weights save for what `look_back` sets."""
    end = tokenizer.eos_token_id
    torch.manual_seed(settings.seed)
    if settings.shape == "llama":
        llama = LlamaForCausalLM(_llama(settings, len(tokenizer), end))
        look_back_rotary(llama)
        return llama.to(settings.device)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=settings.positions,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        attn_implementation="sdpa",
    )
    gpt2 = GPT2LMHeadModel(config)
    look_back(gpt2)
    return gpt2.to(settings.device)


def _llama(settings: Settings, vocabulary: int, end: int) -> LlamaConfig:
    """The inner width of the gated layers is 8/3 of the model's, in whole 64s."""
    return LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=settings.positions,
        hidden_size=settings.width,
        intermediate_size=-(-settings.width * 8 // (3 * 64)) * 64,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        attn_implementation="sdpa",
    )


@torch.no_grad()
def look_back(model: GPT2LMHeadModel) -> None:
    """Begin with an induction circuit: what came after the last place where the present token stood?

    Looking back by content takes a head that carries each token one place on and a later head that matches against
    what was carried; neither is rewarded before the other is there, and a model of this size, started from noise,
    spends most of a short run on finding both. So with d = head size: positions are sinusoids in channels 0..d-1; layer
    0's heads 0 and 1 attend to the tokens one and two before; head 0 copies channels d..2d-1 of that token to channels
    2d..3d-1; and layer 1's head 0 matches the present token's channels d..2d-1 against those, and copies the token it
    finds. All is trained on like any other weight.
    """
    count, width = model.transformer.wpe.weight.shape
    size = width // model.config.n_head
    pairs = torch.arange(size // 2)
    speeds = 2.0 * 600.0 ** (-pairs / len(pairs))
    angles = torch.arange(count)[:, None] * speeds
    model.transformer.wpe.weight.zero_()
    model.transformer.wpe.weight[:, :size] = 0.08 * torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
    place, token, before = (slice(number * size, (number + 1) * size) for number in range(3))
    one = torch.eye(size)

    first, second = model.transformer.h[0].attn, model.transformer.h[1].attn
    for head in (0, 1):
        columns = slice(head * size, (head + 1) * size)
        turn = torch.zeros(size, size)  # the position code of p to that of p - 1 - head
        for pair, angle in enumerate(speeds * (1 + head)):
            turn[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = torch.tensor(
                [[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]]
            )
        queries, keys = first.c_attn.weight[:, :width], first.c_attn.weight[:, width : 2 * width]
        queries[:, columns], keys[:, columns] = 0, 0
        queries[place, columns], keys[place, columns] = 2 * turn, 2 * one
    carry(first, token, before, 0.1)
    carry(second, token, token, 0.3)
    queries, keys = second.c_attn.weight[:, :width], second.c_attn.weight[:, width : 2 * width]
    queries[:, :size], keys[:, :size] = 0, 0
    queries[token, :size], keys[before, :size] = 2 * one, 2 * one


def carry(attention: GPT2Attention, source: slice, target: slice, scale: float) -> None:
    """Make head 0 add ``scale`` × the source channels of what it attends to, to the target channels."""
    width, size = attention.embed_dim, attention.head_dim
    values, output = attention.c_attn.weight[:, 2 * width :], attention.c_proj.weight
    values[:, :size], output[:size] = 0, 0
    values[source, :size], output[:size, target] = torch.eye(size), scale * torch.eye(size)


@torch.no_grad()
def look_back_rotary(model: LlamaForCausalLM) -> None:
    """Begin with an induction circuit, as `look_back` does, where positions turn queries and keys.

    With d = head size: channel 0 is the same for every token; layer 0's query heads 0 and 1 turn it into queries that
    are greatest for the keys one and two places before, whatever their tokens; key/value head 0 carries channels
    d..2d-1 of the token there, which head 0 adds to channels 2d..3d-1; and layer 1's head 0 matches the present token's
    channels d..2d-1 against those, in the half of its own channels that turn slowest, and copies the token it finds.
    """
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    half, group = size // 2, config.num_attention_heads // config.num_key_value_heads
    token, before = (slice(number * size, (number + 1) * size) for number in (1, 2))
    speeds = ROTARY_BASE ** (-torch.arange(half) / half)  # radians a position, of channels i and i + half together
    model.model.embed_tokens.weight[:, 0] = 0.08
    first, second = (layer.self_attn for layer in model.model.layers[:2])

    second.k_proj.weight[:size] = 0
    for shared in {0, 1 // group}:  # by heads 0 and 1
        first.k_proj.weight[shared * size : (shared + 1) * size] = 0
        # The fastest channels: the others hardly tell a place from the next.
        first.k_proj.weight[shared * size : shared * size + half // 4, 0] = 3
    for head in (0, 1):
        angles = speeds * (1 + head)
        first.q_proj.weight[head * size : (head + 1) * size] = 0
        first.q_proj.weight[head * size : (head + 1) * size, 0] = 2 * torch.cat([angles.cos(), -angles.sin()])
    for attention, target, scale in ((first, before, 0.3), (second, token, 0.3)):
        attention.v_proj.weight[:size] = 0
        attention.v_proj.weight[:size, token] = torch.eye(size)
        attention.o_proj.weight[:, : group * size] = 0  # The other heads that share these values would be noise.
        attention.o_proj.weight[target, :size] = scale * torch.eye(size)

    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, size)])
    source = torch.arange(len(slow))
    second.q_proj.weight[:size] = 0
    second.q_proj.weight[slow, source + token.start] = 2
    second.k_proj.weight[slow, source + before.start] = 2
