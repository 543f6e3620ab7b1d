"""The bundled model's shape, and the weights that its training begins with."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from sketch_eval.train.settings import Settings


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 of random weights, save for what `look_back` sets."""
    end = tokenizer.eos_token_id
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
    torch.manual_seed(settings.seed)
    model = GPT2LMHeadModel(config)
    look_back(model)
    return model.to(settings.device)


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
