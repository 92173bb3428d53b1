"""SOAP: Adam in the eigenbasis of Shampoo's matrices. Written from the paper, for comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer


class SOAP(Optimizer):
    """Shampoo with Adam in the preconditioner's eigenbasis.

    For a matrix W [m, n] with gradient G, L and R are moving averages of G G^T and G^T G with eigenvectors Q_L and Q_R,

        W <- W - lr * Q_L (M' / (sqrt(V) + eps)) Q_R^T,   M' = Q_L^T M Q_R,   V = average of (Q_L^T G Q_R)^2,

    with M the average of G; averages are corrected for their start. Every few steps each basis follows its matrix by
    one step of the power iteration and a QR decomposition. Vectors take Adam's step: their basis is that of the axes.

    Args:
        params: Parameters of one or two dimensions.
        lr: Learning rate.
        betas: Weights of the old averages, of M and of V, L and R.
        eps: Added to the square root.
        refresh_every: Steps between refreshes of the bases.

    Cost: a step 4 (m + n) m n multiply-adds beside the gradient; a refresh about 3 (m^3 + n^3).
    Source: Vyas et al., "SOAP: Improving and stabilizing Shampoo using Adam" (2024), algorithm 3.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, *, betas: tuple[float, float] = (0.95, 0.95), eps: float = 1e-8,
        refresh_every: int = 10,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "refresh_every": refresh_every})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p] or _begin(self.state[p], p.grad)
                    p.sub_(group["lr"] * _direction(state, p.grad, group["betas"], group["eps"]))
                    if state["step"] % group["refresh_every"] == 0:
                        _follow(state)


def _begin(state: dict[str, Any], g: Tensor) -> dict[str, Any]:
    """Start averages at zero and bases at the eigenvectors of the first gradient's matrices."""
    state |= {"step": 0, "mean": torch.zeros_like(g), "square": torch.zeros_like(g), "sides": [], "bases": []}
    if g.dim() == 2:
        state["bases"] = [torch.linalg.eigh(side).eigenvectors for side in _sides(g)]
        state["sides"] = [torch.zeros_like(side) for side in _sides(g)]
    return state


def _direction(state: dict[str, Any], g: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    state["step"] += 1
    k, bases, (beta_1, beta_2) = state["step"], state["bases"], betas
    for side, new in zip(state["sides"], _sides(g), strict=True):
        side.lerp_(new, 1 - beta_2)
    state["mean"].lerp_(g, 1 - beta_1)
    state["square"].lerp_(_into(g, bases).square(), 1 - beta_2)
    mean = _into(state["mean"], bases) / (1 - beta_1**k)
    scaled = mean / ((state["square"] / (1 - beta_2**k)).sqrt() + eps)
    return bases[0] @ scaled @ bases[1].mT if bases else scaled


def _follow(state: dict[str, Any]) -> None:
    """Let the bases follow their matrices; columns are kept in the order of their eigenvalues."""
    for axis, (side, basis) in enumerate(zip(state["sides"], state["bases"], strict=True)):
        order = torch.einsum("ij,ij->j", basis, side @ basis).argsort(descending=True)
        state["square"].copy_(state["square"].index_select(axis, order))
        state["bases"][axis] = torch.linalg.qr(side @ basis[:, order]).Q


def _sides(g: Tensor) -> list[Float[Tensor, "m m"]]:
    return [g @ g.mT, g.mT @ g] if g.dim() == 2 else []


def _into(g: Tensor, bases: list[Tensor]) -> Tensor:
    return bases[0].mT @ g @ bases[1] if bases else g
