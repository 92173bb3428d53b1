"""Recurrent layers: products of inputs and states with the gradients of the gates, from the recurrence run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import Gradients, LayerCall, Names, UnsupportedCall
from .linear import product
from .randomness import drawn_again

State = tuple[Tensor, ...]  # what a cell hands on: h, or h and c
# from the gates' shares of the input and of the state, and the state, to the new state, before any projection
Cell = Callable[[Tensor, Tensor, State], State]


def recurrent_parts(module: nn.Module) -> tuple[Names, ...]:
    """Return the parameters' names, each weight with its bias: one part a layer, direction and side."""
    assert isinstance(module, nn.RNNBase)
    ends = [f"_l{k}{end}" for k in range(module.num_layers) for end in _directions(module)]
    return tuple(
        part
        for end in ends
        for part in ((f"weight_ih{end}", f"bias_ih{end}"), (f"weight_hh{end}", f"bias_hh{end}"), (f"weight_hr{end}",))
    )


def recurrent_draws(module: nn.Module) -> bool:
    """Return whether a call draws dropout masks between layers."""
    assert isinstance(module, nn.RNNBase)
    return module.training and module.dropout > 0 and module.num_layers > 1


def recurrent(module: nn.Module, call: LayerCall) -> Gradients:
    """Run the recurrence again, step by step, with zeros added to the gates' two shares: their gradients are g.

    Cost: the layer's forward and backward pass, without the weights' gradients, in small calls: s a layer.
    """
    assert isinstance(module, nn.RNNBase)
    draws = call.training and module.dropout > 0 and module.num_layers > 1
    if draws and call.x.is_cuda:
        raise UnsupportedCall("dropout between layers of a recurrent network cannot be drawn again on a GPU")
    single = call.x.dim() == 2
    x = _steps_first(module, call.x, single)
    states = _initial(module, call, x, single)
    runs, ends = [], []
    with torch.enable_grad(), drawn_again(call.random, draws):
        for k in range(module.num_layers):
            outputs = []
            for direction, end in enumerate(_directions(module)):
                start = tuple(s[k * len(_directions(module)) + direction] for s in states)
                runs.append(_run(module, f"_l{k}{end}", x, start, reverse=direction == 1))
                outputs.append(runs[-1].output)
                ends.append(runs[-1].end)
            x = torch.cat(outputs, 2)
            if draws and k + 1 < module.num_layers:
                x = F.dropout(x, module.dropout)
        results = [x, *(torch.stack(own) for own in zip(*ends, strict=True))]
    grads = [None if g is None else _steps_first(module, g, single) for g in call.grads[:1]]
    grads += [None if g is None else (g[:, None] if single else g) for g in call.grads[1:]]
    pairs = [(y, g.to(y.dtype)) for y, g in zip(results, grads, strict=False) if g is not None]
    leaves = [leaf for run in runs for leaf in run.leaves]
    found = torch.autograd.grad(
        [y for y, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True, materialize_grads=True
    )
    given: dict[Any, Any] = {}
    for run in runs:
        own, found = found[: len(run.leaves)], found[len(run.leaves) :]
        for (side, weight, bias), g in zip(run.sides, own, strict=True):
            given |= product(side.detach().transpose(0, 1)[None], g.transpose(0, 1)[None], call.wanted, weight, bias)
    return given


@dataclass(frozen=True)
class Run:
    """One layer's recurrence in one direction.

    Args:
        output: What it gave at each step, [s, n, d].
        end: Its last state.
        leaves: Zeros added to the gates' shares of input and state, and to the projected state: [s, n, .] each.
        sides: What each of those shares is the product of, [s, n, .], with the names of weight and bias.
    """

    output: Tensor
    end: State
    leaves: tuple[Tensor, ...]
    sides: tuple[tuple[Tensor, str, str], ...]


def _run(module: nn.RNNBase, end: str, x: Tensor, state: State, reverse: bool) -> Run:
    w_in, w_state = (getattr(module, f"weight_{side}{end}").detach() for side in ("ih", "hh"))
    b_in, b_state = (getattr(module, f"bias_{side}{end}").detach() if module.bias else None for side in ("ih", "hh"))
    project = getattr(module, f"weight_hr{end}").detach() if module.proj_size else None
    s, n = x.shape[:2]
    leaves = [x.new_zeros(s, n, len(w_in), requires_grad=True) for _ in range(2)]
    shares = F.linear(x, w_in, b_in) + leaves[0]
    if project is not None:
        leaves.append(x.new_zeros(s, n, len(project), requires_grad=True))
    cell, before, inner, outputs = _cell(module), [x] * s, [x] * s, [x] * s
    for t in reversed(range(s)) if reverse else range(s):
        before[t] = state[0]
        state = cell(shares[t], F.linear(state[0], w_state, b_state) + leaves[1][t], state)
        if project is not None:
            inner[t] = state[0]
            state = (F.linear(state[0], project) + leaves[2][t], *state[1:])
        outputs[t] = state[0]
    sides = [(x, f"weight_ih{end}", f"bias_ih{end}"), (torch.stack(before), f"weight_hh{end}", f"bias_hh{end}")]
    sides += [] if project is None else [(torch.stack(inner), f"weight_hr{end}", "")]
    return Run(torch.stack(outputs), state, tuple(leaves), tuple(sides))


def _cell(module: nn.RNNBase) -> Cell:
    if isinstance(module, nn.LSTM):
        return _lstm
    if isinstance(module, nn.GRU):
        return _gru
    act = torch.relu if module.nonlinearity == "relu" else torch.tanh
    return lambda x, h, state: (act(x + h),)


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    enter, keep, new, leave = (x + h).chunk(4, 1)
    c = keep.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (reset, keep, new), (by_reset, by_keep, by_new) = x.chunk(3, 1), h.chunk(3, 1)
    keep = (keep + by_keep).sigmoid()
    new = (new + (reset + by_reset).sigmoid() * by_new).tanh()
    return (new + keep * (state[0] - new),)


def _directions(module: nn.RNNBase) -> tuple[str, ...]:
    return ("", "_reverse") if module.bidirectional else ("",)


def _steps_first(module: nn.RNNBase, x: Tensor, single: bool) -> Tensor:
    """Return [s, n, d]; without a batch dimension the input is one sample."""
    x = x[:, None] if single else x.transpose(0, 1) if module.batch_first else x
    return x.to(next(module.parameters()).dtype)


def _initial(module: nn.RNNBase, call: LayerCall, x: Tensor, single: bool) -> State:
    """Return the initial states of all layers and directions, [layers, n, d] each."""
    given = call.argument(1, "hx")
    if given is not None:
        states = given if isinstance(given, tuple | list) else (given,)
        return tuple((s[:, None] if single else s).to(x.dtype) for s in states)
    count = module.num_layers * len(_directions(module))
    sizes = [module.proj_size or module.hidden_size, *([module.hidden_size] if isinstance(module, nn.LSTM) else [])]
    return tuple(x.new_zeros(count, x.shape[1], size) for size in sizes)
