"""K-FAC: a short reference on the samples that the library captures, for comparisons.

Legend: n samples, s positions, d_in and d_out features; a bias is the last column of its weight, its input 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from ...blocks import Block
from ...capture import Capture
from ...config import Options
from ...curvature import member_io
from ...errors import ModelError
from ...grouping import lay_out
from ...per_sample import Product

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHUNK = 32  # samples whose inputs are written out at once


def factors(io: Product) -> tuple[Float[Tensor, "d_in d_in"], Float[Tensor, "d_out d_out"]]:
    """Return A and G, with which the empirical Fisher matrix of a layer is taken to be A (x) G.

        A = 1/n sum_it a_it a_it^T,    G = 1/(n s) sum_it g_it g_it^T

    over samples i and positions t: a_it are inputs, g_it gradients of the sample's own loss at the layer's outputs.

    Args:
        io: What the layer captured under a mean loss, in one group.

    Source: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature" (2015);
    Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers" (2016).
    """
    width = io.d_in + io.bias
    inputs, outputs = io.g.new_zeros(width, width), io.g.new_zeros(io.g.shape[3], io.g.shape[3])
    for start in range(0, io.n, CHUNK):
        a, g = (part[0].flatten(0, 1) for part in io.chunk(start, start + CHUNK))
        a = torch.cat([a, a.new_ones(len(a), 1)], 1) if io.bias else a
        inputs.addmm_(a.mT, a)
        outputs.addmm_(g.mT, g)
    return inputs / io.n, outputs * (io.n / io.g.shape[2])


def damped_inverses(a: Tensor, g: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return (A + pi sqrt(damping) I)^-1 and (G + sqrt(damping) / pi I)^-1, pi^2 being the ratio of mean eigenvalues.

    Source: Martens and Grosse (2015), section 6.3.
    """
    tiny = torch.finfo(a.dtype).tiny
    ratio = ((a.trace() / len(a)).clamp_min(tiny) / (g.trace() / len(g)).clamp_min(tiny)).sqrt()
    root = damping**0.5
    return _inverse(a, ratio * root), _inverse(g, root / ratio)


def _inverse(matrix: Tensor, added: Tensor) -> Tensor:
    damped = matrix + added * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))


class KFAC(Optimizer):
    """Natural gradient with Kronecker factors, on linear and convolutional layers of one group.

    For a layer's gradient D_0 [d_out, d_in], the step is -lr times the momentum of

        D = (G + sqrt(damping) / pi I)^-1 D_0 (A + pi sqrt(damping) I)^-1,

    where all D together are made shorter until lr^2 sum D^T F D <= decrease. Other parameters are left alone; those
    taken are in ``param_groups``.

    Args:
        model: The model; hooks on its layers capture inputs and output gradients of mean losses.
        lr: Learning rate, >= 0.
        momentum: In [0, 1).
        weight_decay: Decoupled, as AdamW's, >= 0.
        damping: > 0.
        ema: Weight of the old A and G at a refresh, in [0, 1).
        refresh_every: Steps between refreshes of A, G and their inverses, >= 1.
        decrease: The bound on the predicted decrease of the loss in a step, > 0.

    Raises:
        OptionError: A value is out of range.
        ModelError: The model has no layer with captured samples.

    Cost: a refresh n s (d_in^2 + d_out^2) multiply-adds and two inverses a layer; a step four products with them.
    Source: Martens and Grosse (2015); the bound is Ba, Grosse and Martens' (2017), section 5, with F as it is.
    """

    def __init__(
        self, model: nn.Module, lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0, damping: float = 0.03,
        ema: float = 0.95, refresh_every: int = 10, decrease: float = 0.01,
    ):  # fmt: skip
        options = Options.build("KFAC()", {"damping": damping, "ema": ema, "refresh_every": refresh_every})
        layout = lay_out(model, options, "KFAC()")
        self._blocks = [block for block in layout.blocks.values() if _has_factors(block)]
        if not self._blocks:
            raise ModelError(
                "KFAC()", "no supported layer", expected="a linear layer, or a convolution of one group",
                got=type(model).__name__, fix="Use another optimizer",
            )  # fmt: skip
        modules = [block.members[0][0].module for block in self._blocks]
        self._capture = Capture([entry for entry in layout.watched if entry.module in modules], frozenset(), model)
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping, "ema": ema}
        settings |= {"refresh_every": refresh_every, "decrease": decrease, "step": 0}
        super().__init__([p for block in self._blocks for p in block.parameters], settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; refresh the factors where that is due."""
        group = self.param_groups[0]
        if group["step"] % group["refresh_every"] == 0:
            self._refresh(group)
        group["step"] += 1
        self._capture.armed = group["step"] % group["refresh_every"] == 0
        found = [(block, *self._direction(block)) for block in self._blocks if _has_gradients(block)]
        predicted = group["lr"] ** 2 * sum(float(decrease) for _, _, decrease in found)
        share = min(1.0, (group["decrease"] / predicted) ** 0.5) if predicted > 0 else 1.0
        for block, direction, _ in found:
            self._move(block, direction * share, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and what was captured along with them."""
        super().zero_grad(set_to_none)
        self._capture.clear()

    def _refresh(self, group: dict[str, Any]) -> None:
        layers = self._capture.collect().layers
        self._capture.release()
        for block in self._blocks:
            io = member_io(block, layers).get(0)
            if not isinstance(io, Product):  # the layer was not used
                continue
            state = self.state[block.parameters[0]]
            for name, new in zip(("a", "g"), factors(io), strict=True):
                state[name] = state[name].lerp(new, 1 - group["ema"]) if name in state else new
            state["inverse_a"], state["inverse_g"] = damped_inverses(state["a"], state["g"], group["damping"])

    def _direction(self, block: Block) -> tuple[Float[Tensor, "d_out d_in"], Tensor]:
        """Return D and D^T F D; the gradient itself where a layer has no factors yet."""
        gradient = torch.cat([_matrix(p.grad) for p in block.parameters if p.grad is not None], 1)
        state = self.state[block.parameters[0]]
        if "a" not in state:
            return gradient, gradient.new_zeros(())
        direction = state["inverse_g"] @ gradient @ state["inverse_a"]
        return direction, (state["g"] @ direction @ state["a"] * direction).sum()

    def _move(self, block: Block, direction: Tensor, group: dict[str, Any]) -> None:
        state = self.state[block.parameters[0]]
        buffer = state.get("momentum")
        state["momentum"] = direction if buffer is None else buffer.mul_(group["momentum"]).add_(direction)
        widths = [_matrix(p).shape[1] for p in block.parameters]
        for p, part in zip(block.parameters, state["momentum"].split(widths, 1), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(group["lr"] * part.reshape(p.shape))


def _has_factors(block: Block) -> bool:
    """Return whether a block is the weight of one layer of one group, with its bias where it has one."""
    module, names = block.members[0][0].module, [name.rpartition(".")[2] for name in block.parameter_names]
    alone = len(block.members) == 1 and isinstance(module, KINDS) and getattr(module, "groups", 1) == 1
    return alone and names in (["weight"], ["weight", "bias"])


def _has_gradients(block: Block) -> bool:
    return all(p.grad is not None for p in block.parameters)


def _matrix(x: Tensor) -> Tensor:
    return x.flatten(1) if x.dim() > 1 else x[:, None]
