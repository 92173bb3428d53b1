"""Taylor coefficients of functions of one number at v, up to an order. Adding one is a line in the table."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Series = Callable[..., list[Tensor]]  # (v, order, *options) -> coefficients of phi(v + t), of v's shape


def _square(y: list[Tensor], n: int) -> Tensor:
    """Return the coefficient of order n of the square of a series."""
    pairs = [2 * y[i] * y[n - i] for i in range((n + 1) // 2)]
    return sum(pairs[1:], pairs[0]) if n % 2 else sum(pairs, y[n // 2] * y[n // 2])


def _integral(value: Tensor, slopes: list[Tensor], rate: float = 1.0) -> list[Tensor]:
    """Return the series with a value and a derivative."""
    return [value, *(slope if n == 0 and rate == 1 else slope * (rate / (n + 1)) for n, slope in enumerate(slopes))]


def _by_equation(y: Tensor, order: int, slope: Callable[[list[Tensor], int], Tensor]) -> list[Tensor]:
    """Return the solution of y' = slope(y), whose coefficient n is a function of those of y up to n."""
    out = [y]
    for n in range(order):
        out.append(slope(out, n) / (n + 1) if n else slope(out, 0))
    return out


def _tanh(v: Tensor, order: int) -> list[Tensor]:
    return _by_equation(v.tanh(), order, lambda y, n: -_square(y, n) if n else 1 - y[0] * y[0])


def _sigmoid(v: Tensor, order: int) -> list[Tensor]:
    return _by_equation(v.sigmoid(), order, lambda y, n: y[n] - _square(y, n))


def _exp(v: Tensor, order: int) -> list[Tensor]:
    return _by_equation(v.exp(), order, lambda y, n: y[n])


def _exp2(v: Tensor, order: int) -> list[Tensor]:
    return _by_equation(v.exp2(), order, lambda y, n: math.log(2) * y[n])


def _expm1(v: Tensor, order: int) -> list[Tensor]:
    return [v.expm1(), *_exp(v, order)[1:]]


def _sin(v: Tensor, order: int) -> list[Tensor]:
    s, c = v.sin(), v.cos()
    return [(s, c, -s, -c)[n % 4] / math.factorial(n) for n in range(order + 1)]


def _cos(v: Tensor, order: int) -> list[Tensor]:
    s, c = v.sin(), v.cos()
    return [(c, -s, -c, s)[n % 4] / math.factorial(n) for n in range(order + 1)]


def _sinh(v: Tensor, order: int) -> list[Tensor]:
    return [(v.cosh() if n % 2 else v.sinh()) / math.factorial(n) for n in range(order + 1)]


def _cosh(v: Tensor, order: int) -> list[Tensor]:
    return [(v.sinh() if n % 2 else v.cosh()) / math.factorial(n) for n in range(order + 1)]


def _power(v: Tensor, order: int, exponent: Any) -> list[Tensor]:
    if not isinstance(exponent, int | float):
        raise TypeError("a power that is no number")
    out, factor = [v**exponent], 1.0
    for n in range(order):
        factor *= (exponent - n) / (n + 1)
        out.append(factor * v ** (exponent - n - 1) if factor else torch.zeros_like(v))
    return out


def _log(v: Tensor, order: int) -> list[Tensor]:
    return _integral(v.log(), _power(v, order - 1, -1))


def _log1p(v: Tensor, order: int) -> list[Tensor]:
    return _integral(v.log1p(), _power(1 + v, order - 1, -1))


def _atan(v: Tensor, order: int) -> list[Tensor]:
    slopes = [1 / (1 + v * v)]  # (1 + v^2) g = 1
    for n in range(1, order):
        slopes.append(-slopes[0] * (2 * v * slopes[n - 1] + (slopes[n - 2] if n > 1 else 0)))
    return _integral(v.atan(), slopes)


def _gauss(v: Tensor, order: int) -> list[Tensor]:
    out = [torch.exp(-v * v / 2) / math.sqrt(2 * math.pi)]  # g' = -v g
    for n in range(order):
        out.append(-(v * out[n] + (out[n - 1] if n else 0)) / (n + 1))
    return out


def _erf(v: Tensor, order: int) -> list[Tensor]:
    slopes = _gauss(v * math.sqrt(2), order - 1)
    return _integral(v.erf(), [g * 2 * math.sqrt(2) ** (n + 1) for n, g in enumerate(slopes)])


def _softplus(v: Tensor, order: int, beta: float = 1.0, threshold: float = 20.0) -> list[Tensor]:
    slopes = [s * beta**n for n, s in enumerate(_sigmoid(beta * v, order - 1))]
    bent, line = _integral(F.softplus(v, beta, threshold), slopes), [v, torch.ones_like(v)]
    far = beta * v > threshold  # where torch takes a straight line
    return [torch.where(far, line[n] if n < 2 else torch.zeros_like(v), x) for n, x in enumerate(bent)]


def _logsigmoid(v: Tensor, order: int) -> list[Tensor]:
    return [F.logsigmoid(v), *(s * (-1) ** n / (n + 1) for n, s in enumerate(_sigmoid(-v, order - 1)))]


def _elu(v: Tensor, order: int, alpha: float = 1.0) -> list[Tensor]:
    left, right = _exp(v.clamp(max=0), order), [v, torch.ones_like(v)]
    left[0] = v.clamp(max=0).expm1()
    return [
        torch.where(v > 0, right[n] if n < 2 else torch.zeros_like(v), alpha * x) for n, x in enumerate(left)
    ]  # fmt: skip


def _times_x(v: Tensor, series: list[Tensor]) -> list[Tensor]:
    return [v * series[0], *(v * b + a for a, b in pairwise(series))]


def _silu(v: Tensor, order: int) -> list[Tensor]:
    return _times_x(v, _sigmoid(v, order))


def gelu(v: Tensor, order: int) -> list[Tensor]:
    """Return those of x * (1 + erf(x / sqrt(2))) / 2."""
    return _times_x(v, _integral((1 + torch.erf(v / math.sqrt(2))) / 2, _gauss(v, order - 1)))


SERIES: dict[str, Series] = {
    "tanh": _tanh, "sigmoid": _sigmoid, "expit": _sigmoid, "exp": _exp, "exp2": _exp2, "expm1": _expm1, "sin": _sin,
    "cos": _cos, "sinh": _sinh, "cosh": _cosh, "log": _log, "log1p": _log1p, "atan": _atan, "arctan": _atan,
    "erf": _erf, "softplus": _softplus, "logsigmoid": _logsigmoid, "elu": _elu, "silu": _silu, "pow": _power,
    "__pow__": _power, "square": lambda v, order: _power(v, order, 2),
    "sqrt": lambda v, order: _power(v, order, 0.5), "rsqrt": lambda v, order: _power(v, order, -0.5),
    "reciprocal": lambda v, order: _power(v, order, -1),
}  # fmt: skip
