"""Residuals and their rows from a loop that only gives a closure: what the loss squares, by point.

The closure runs with another loss function, which keeps the residuals and hands back their squares, cut off from the
network: the backward pass of the closure then gives what the loss weighs each square with, and costs nothing. For rows,
the network is run with one copy of its parameters a point (views of the same memory), so that one reverse pass gives
the derivatives of all points apart, whatever derivatives in the inputs the residuals hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call, vmap

from ..errors import BatchError

CALL = "step()"
SAME = 1e-3  # relative difference of two ways to the same number, float32 included

Closure = Callable[[], Any]


@dataclass
class Recorder:
    """Takes the place of a mean squared error.

    Attributes:
        errors: Residuals in the order of their evaluation, [m, ...], with their graphs.
        squares: Their squares, leaves of the graph of the closure's loss.
        places: Which inputs of the network each depends on, where these are not all; set by the integration.
    """

    errors: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    places: Callable[[int, int], slice] = lambda k, count: slice(None)

    def square(self, error: Tensor) -> Tensor:
        """Keep residuals, and return their squares."""
        plain = error.as_subclass(Tensor)
        self.errors.append(plain)
        self.squares.append(plain.detach().square().requires_grad_())
        return self.squares[-1]

    def mean(self, target: Any, output: Any) -> Tensor:
        """Keep output - target, and return the mean of the squares."""
        return self.square(output - target).mean()

    @property
    def weights(self) -> list[Tensor]:
        """Derivative of the loss in each square, after the closure's backward pass."""
        return [torch.zeros_like(s) if s.grad is None else s.grad for s in self.squares]


Recording = Callable[[Recorder], AbstractContextManager[None]]


@dataclass(frozen=True)
class Captured:
    """Residuals at the present parameters.

    Args:
        r: sqrt(2 weight) * residual, [n]: the loss is |r|^2 / 2.
        factors: sqrt(2 weight), [n].
        counts: Number of rows of each term.
        rows: Their derivatives in all parameters, [n, p].
    """

    r: Float[Tensor, " n"]
    factors: Float[Tensor, " n"]
    counts: list[int]
    rows: Float[Tensor, "n p"]


def residuals(closure: Closure, recording: Recording) -> Float[Tensor, " n"]:
    """Return the residuals at the present parameters. Cost: one call of the closure."""
    recorder = Recorder()
    with torch.enable_grad(), recording(recorder):
        closure()
    return torch.cat([error.detach().reshape(-1) for error in recorder.errors])


def capture(
    closure: Closure, recording: Recording, net: nn.Module, others: Sequence[Tensor], *, check: bool
) -> Captured:
    """Return residuals and rows at the present parameters.

    Args:
        closure: Computes the loss and its gradient.
        recording: Makes the loop use a recorder in place of its loss function.
        net: The network.
        others: Parameters that residuals use beside the network.
        check: Whether to make sure that each residual depends on its own points alone. Cost: two reverse passes.

    Raises:
        BatchError: The loss is no weighted sum of squares, or a residual depends on other points.

    Cost: a call of the closure and a reverse pass for each residual of a point; n p numbers for each operation of the
    network.
    """
    recorder, copies = Recorder(), Copies(net)
    with torch.enable_grad(), recording(recorder):
        with copies:
            total = closure()
        weights = recorder.weights
        _require_squares(total, recorder, weights)
        parts = [
            _rows(recorder.errors[k], recorder.places(k, len(recorder.errors)), copies, others, check)
            for k in range(len(recorder.errors))
        ]
    errors = torch.cat([error.detach().reshape(-1) for error in recorder.errors])
    factors = (2 * torch.cat([weight.reshape(-1) for weight in weights])).sqrt()
    rows = torch.cat(parts).mul_(factors[:, None])
    return Captured(factors * errors, factors, [error.numel() for error in recorder.errors], rows)


class Copies(AbstractContextManager["Copies"]):
    """Lets a network run with one copy of its parameters for each of its inputs, while the context is open.

    Args:
        net: The network; its first argument has the points first.

    Attributes:
        calls: The copies of each call, one tensor [points, ...] a parameter.
    """

    def __init__(self, net: nn.Module):
        self._net, self._forward, self._inside = net, net.forward, False
        self._named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.calls: list[list[Tensor]] = []

    @property
    def own(self) -> list[Tensor]:
        """The parameters themselves."""
        return list(self._named.values())

    def __enter__(self) -> Copies:
        self._patched = "forward" in self._net.__dict__
        self._net.forward = self._run
        return self

    def __exit__(self, *raised: object) -> None:
        if self._patched:
            self._net.forward = self._forward
        else:
            del self._net.forward

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._inside:
            return self._forward(x, *args, **kwargs)
        kind, marks = type(x), vars(x) if type(x) is not Tensor else {}
        copies = [p.detach().expand(len(x), *p.shape).requires_grad_() for p in self.own]

        def one(values: list[Tensor], point: Tensor) -> Tensor:
            batch = point[None].as_subclass(kind)
            for name, value in marks.items():  # labels of the inputs' columns
                setattr(batch, name, value)
            named = dict(zip(self._named, values, strict=True))
            return functional_call(self._net, named, (batch, *args), kwargs)[0].as_subclass(Tensor)

        self._inside = True
        try:
            out = vmap(one)(copies, x.as_subclass(Tensor))
        finally:
            self._inside = False
        self.calls.append(copies)
        return out


def _rows(error: Tensor, place: slice, copies: Copies, others: Sequence[Tensor], check: bool) -> Float[Tensor, "n p"]:
    """Return the derivatives of a term's residuals in all parameters, point by point."""
    columns = error.reshape(len(error), -1)
    parts = [torch.cat([_own(c, place, copies, check), _other(c, others)], 1) for c in columns.unbind(1)]
    return torch.stack(parts, 1).flatten(0, 1)


def _own(error: Float[Tensor, " m"], place: slice, copies: Copies, check: bool) -> Float[Tensor, "m q"]:
    """Return derivatives in the network's parameters."""
    m, size = len(error), sum(p.numel() for p in copies.own)
    rows = error.new_zeros(m, size)
    if not error.requires_grad:
        return rows
    for call in copies.calls:
        grads = grad(error.sum(), call, retain_graph=True, allow_unused=True)
        if all(g is None for g in grads):  # another condition's call
            continue
        by_input = _flat(grads, call)[place]
        if len(by_input) % m:
            raise _refusal("residuals are not one for each point", f"{len(by_input)} points or a part", m)
        apart = by_input.reshape(-1, m, size)
        if check and not _separate(error, call, place, apart):
            raise _refusal("a residual depends on several points", "residuals of one point each", f"{m} residuals")
        rows += apart.sum(0)
    if check and any(g is not None for g in grad(error.sum(), copies.own, retain_graph=True, allow_unused=True)):
        raise _refusal("parameters are used outside of the network's forward", "calls of the network", "parameters")
    return rows


def _other(error: Float[Tensor, " m"], others: Sequence[Tensor]) -> Float[Tensor, "m q"]:
    """Return derivatives in single numbers, by forward mode made of two reverse passes each."""
    v = torch.zeros_like(error, requires_grad=True)
    found = [error.new_zeros(len(error), 0)]
    for other in others:
        pulled = None
        if error.requires_grad:
            pulled = grad(error, other, v, create_graph=True, retain_graph=True, allow_unused=True)[0]
        for k in range(other.numel()):
            column = None
            if pulled is not None and pulled.requires_grad:
                column = grad(pulled.reshape(-1)[k], v, retain_graph=True, allow_unused=True)[0]
            found.append((torch.zeros_like(error) if column is None else column).detach()[:, None])
    return torch.cat(found, 1)


def _separate(error: Tensor, call: list[Tensor], place: slice, apart: Float[Tensor, "t m q"]) -> bool:
    """Whether derivatives of a weighted sum are the weighted derivatives, as they are where points do not mix."""
    v = torch.linspace(1, 2, len(error), dtype=error.dtype, device=error.device)
    v = v[torch.randperm(len(v), generator=torch.Generator().manual_seed(0)).to(v.device)]
    got = _flat(grad(error @ v, call, retain_graph=True, allow_unused=True), call)[place].reshape(apart.shape)
    return not (got - v[:, None] * apart).norm() > SAME * got.norm()  # numbers that are not finite are told of later


def _flat(grads: Sequence[Tensor | None], like: list[Tensor]) -> Float[Tensor, "m q"]:
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, like, strict=True)]
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)


def _require_squares(total: Any, recorder: Recorder, weights: list[Tensor]) -> None:
    """Raise BatchError unless the loss is the weighted sum of the squares that were kept."""
    pairs = zip(recorder.squares, weights, strict=True)
    known = sum((square.detach() * weight).sum().item() for square, weight in pairs)
    got = float(total.detach()) if isinstance(total, Tensor) else known
    if not recorder.errors or abs(got - known) > SAME * abs(got) or any(bool((w < 0).any()) for w in weights):
        raise _refusal("the loss is no sum of squared residuals with weights >= 0", f"a loss of {known:.6g}", got)


def _refusal(problem: str, expected: str, got: object) -> BatchError:
    return BatchError(
        CALL,
        problem,
        expected=expected,
        got=got,
        fix="Use mean squared errors of residuals at points",
    )


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an object have another attribute of its own while the context is open."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
