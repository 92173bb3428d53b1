"""Multi-head attention, and the transformers built of it, against autograd sample by sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seng import Preconditioner, verify
from seng.testing import blocks_of, check_layer

from .draws import examples, option_sets, seeds
from .samples import check_samples
from .training import assert_all_of_it_trains

N, S, D = 4, 3, 4


def _input(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Cross(nn.Module):
    """Attention of queries to keys and values of other lengths, with whatever masks and outputs."""

    def __init__(self, used: str, calls: dict[str, Any], **options: Any):
        super().__init__()
        self.attention, self.used, self.calls = nn.MultiheadAttention(D, 2, **options), used, calls

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.attention.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        out, weights = self.attention(q, k, v, **self.calls)
        out = out if self.attention.batch_first else out.transpose(0, 1)
        losses = out.tanh().square().sum((1, 2))
        return losses + weights.square().flatten(1).sum(1) if self.used == "both" else losses


@examples(40)
@given(data=st.data(), seed=seeds)
def test_attention_has_the_gradients_of_single_samples(data: st.DataObject, seed: int):
    flag = st.booleans()
    other = data.draw(st.sampled_from(["self", "memory", "both"]))
    separate = other != "self" and data.draw(flag)
    options = {key: data.draw(flag) for key in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    options |= {"dropout": data.draw(st.sampled_from([0.0, 0.3])), **({"kdim": 3, "vdim": 5} if separate else {})}
    torch.manual_seed(seed)
    length = S if other == "self" else 5
    calls: dict[str, Any] = {"need_weights": data.draw(flag)}
    if data.draw(flag):
        calls["key_padding_mask"] = torch.rand(N, length) < 0.3
        calls["key_padding_mask"][:, 0] = False
    mask = data.draw(st.sampled_from(["", "bool", "float", "heads"]))
    if mask == "bool":
        calls["attn_mask"] = torch.ones(S, length).triu(1) > 0
    elif mask:
        calls["attn_mask"] = _input(*((2 * N, S, length) if mask == "heads" else (S, length)))
    used = "both" if calls["need_weights"] and data.draw(flag) else "output"
    calls |= {"average_attn_weights": data.draw(flag)} if calls["need_weights"] else {}
    model = Cross(used, calls, **options).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    q = _input(N, S, D)
    k, v = q, q
    if other != "self":
        k = _input(N, length, 3 if separate else D)
        v = _input(N, length, 5) if separate else k if other == "memory" else _input(N, length, D)
    check_samples(model, lambda: model(q, k, v))


@examples(10)
@given(options=option_sets(), seed=seeds)
def test_attention_matches_oracle(options: dict[str, Any], seed: int):
    def inputs() -> tuple[Tensor, ...]:
        return torch.randn(N, S, D), torch.randn(N, 5, D), torch.randn(N, 5, D)

    check_layer(lambda: nn.MultiheadAttention(D, 2, batch_first=True), inputs, seed=seed, **options)


@pytest.mark.parametrize("frozen", ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias", "bias_k"])
def test_attention_matches_autograd_with_a_frozen_parameter(frozen: str):
    torch.manual_seed(0)
    model = Cross("output", {}, batch_first=True, add_bias_kv=True).double()
    model.attention.get_parameter(frozen).requires_grad_(False)
    x = _input(N, S, D)
    check_samples(model, lambda: model(x, x, x))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_transformers_have_the_gradients_of_single_samples(dropout: float):
    torch.manual_seed(0)
    model = nn.Transformer(D, 2, 1, 1, 6, dropout=dropout, batch_first=True).double()
    x, y = _input(N, 5, D), _input(N, S, D)
    mask = nn.Transformer.generate_square_subsequent_mask(S).double()
    check_samples(model, lambda: model(x, y, tgt_mask=mask, tgt_is_causal=True).tanh().square().sum((1, 2)))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder_is_covered_whole_and_verifies(norm_first: bool, training: bool):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 6, dropout=0.1, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(nn.Embedding(7, D), nn.TransformerEncoder(layer, 2), nn.Linear(D, 7)).train(training)
    ids = torch.arange(6).repeat(8, 1)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    report = verify(model, loss)
    assert report.ok, str(report)
    assert_all_of_it_trains(model, loss)


def test_sequence_first_transformers_pass_through_by_name():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(D, 2, 6, dropout=0.0)
    pre = Preconditioner(model)
    model(torch.randn(5, N, D)).square().mean().backward()
    before = [p.grad.clone() for p in model.self_attn.parameters() if p.grad is not None]
    with pytest.warns(UserWarning, match="these layers keep their plain gradient: self_attn"):
        pre.step()
    after = [p.grad for p in model.self_attn.parameters() if p.grad is not None]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old)
    pre.close()


class Patched(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def test_attention_with_a_forward_of_its_own_passes_through_whole():
    model = nn.ModuleDict({"own": Patched(D, 2), "last": nn.Linear(D, 2)})
    assert set(blocks_of(model)) == {"last"}


def test_excluded_attention_excludes_its_output_projection():
    model = nn.TransformerEncoderLayer(D, 2, 6, batch_first=True)
    assert set(blocks_of(model, exclude=[nn.MultiheadAttention])) == {"linear1", "linear2", "norm1", "norm2"}
    names = {"self_attn.in_proj_weight", "self_attn.out_proj.weight"}
    assert set(blocks_of(model, include=["self_attn"])) == names


def test_dropout_in_a_compiled_graph_passes_through_with_its_reason():
    torch.compiler.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.TransformerEncoderLayer(D, 2, 6, dropout=0.3, batch_first=True))
    pre = Preconditioner(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    compiled(torch.randn(N, S, D)).square().mean().backward()
    with pytest.warns(UserWarning, match="its dropout is part of a compiled graph and cannot be drawn again"):
        pre.step()
    pre.close()
    torch.compiler.reset()
