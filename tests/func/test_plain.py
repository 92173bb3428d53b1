"""Derivatives of high order are right through layers and operations where torch's own are wrong or fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian
from torch.nn import functional as F

from seng.func import gradient, laplacian, partial, taylor, verify
from seng.func.plain import PLAIN, SpelledOut

from .reference import DTYPE, draw

FINE = 1e-6  # differences of fourth order in float64
H = 1e-3
WEIGHT, BIAS, TABLE = draw(2, seed=3), draw(2, seed=4), draw(4, 2, seed=7)


def matrix(z: Tensor) -> Tensor:
    return 2 * torch.eye(4, dtype=DTYPE) + 0.3 * torch.outer(z[:4], z[4:])


def attention(z: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(z, z, z)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda z: F.layer_norm(z.view(2, 4), (4,)),
    "layer_norm of two dimensions": lambda z: torch.layer_norm(z.view(4, 2), (4, 2), TABLE, TABLE),
    "instance_norm": lambda z: F.instance_norm(z.view(1, 2, 4), weight=WEIGHT, bias=BIAS),
    "instance_norm with statistics": lambda z: F.instance_norm(
        z.view(1, 2, 4), WEIGHT, WEIGHT.square(), use_input_stats=False
    ),
    "batch_norm of the sample": lambda z: F.batch_norm(z.view(4, 2), None, None, WEIGHT, BIAS, training=True),
    "batch_norm with statistics": lambda z: F.batch_norm(z.view(4, 2), BIAS, WEIGHT.square(), WEIGHT, BIAS),
    "group_norm": lambda z: F.group_norm(z.view(1, 4, 2), 2),
    "rms_norm": lambda z: F.rms_norm(z, (8,)),
    "prelu": lambda z: F.prelu(z.view(1, 2, 4), WEIGHT) * z.view(1, 2, 4),
    "glu": lambda z: F.glu(z),
    "normalize": lambda z: F.normalize(z, dim=0),
    "norm": lambda z: z * z.norm(),
    "standard deviation": lambda z: z * z.std(),
    "cosine": lambda z: z * F.cosine_similarity(z[:4], z[4:], 0),
    "softmax": lambda z: z.softmax(0),
    "logsumexp": lambda z: z * z.logsumexp(0),
    "attention": lambda z: attention(z.square().view(1, 1, 4, 2)),
    "solve": lambda z: torch.linalg.solve(matrix(z), z.view(4, 2)),
    "inv": lambda z: torch.linalg.inv(matrix(z)),
    "det": lambda z: z * torch.linalg.det(matrix(z)),
    "slogdet": lambda z: z * torch.linalg.slogdet(matrix(z))[1],
    "cholesky": lambda z: torch.linalg.cholesky(matrix(z) @ matrix(z).mT),
    "eigvalsh": lambda z: torch.linalg.eigvalsh(matrix(z) + matrix(z).mT + torch.diag(torch.arange(4.0)).to(z)),
}


class Through(nn.Module):
    """A network with an operation inside."""

    def __init__(self, operation: Callable[[Tensor], Tensor], outputs: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Linear(2, 8, dtype=DTYPE)
            self.outer = nn.LazyLinear(outputs, dtype=DTYPE)
            self.operation = operation
            self(draw(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.operation(self.inner(x).tanh()).tanh().reshape(-1))


@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives_match_differences(name: str) -> None:
    net, x = Through(OPERATIONS[name], outputs=2), draw(2, seed=5)
    bends = torch.zeros(2, 2, dtype=DTYPE)
    for k, e in enumerate(H * torch.eye(2, dtype=DTYPE)):
        slopes = [gradient(net, x + step * e)[:, k] for step in (-2, -1, 1, 2)]
        bends[k] = (slopes[0] - 8 * slopes[1] + 8 * slopes[2] - slopes[3]) / (12 * H)
    torch.testing.assert_close(laplacian(net, x), bends.sum(0), rtol=FINE, atol=FINE)
    torch.testing.assert_close(taylor(net, x).second, bends, rtol=FINE, atol=FINE)
    torch.testing.assert_close(partial(net, x, 1, 1), bends[1], rtol=FINE, atol=FINE)


@pytest.mark.parametrize("name", OPERATIONS)
def test_rows_match_differences(name: str) -> None:
    net, x = Through(OPERATIONS[name]), draw(3, 2, seed=5)
    errors = verify(
        {"second": lambda u, x: laplacian(u, x), "third": lambda u, x: partial(u, x, 0, 1, 1)},
        net, {"second": x, "third": x},
    )  # fmt: skip
    assert max(errors.values()) < FINE


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "norm" in name or name == "prelu"])
def test_plain_operations_compute_what_torch_does(name: str) -> None:
    z = draw(8, seed=6)
    with SpelledOut():
        got = OPERATIONS[name](z)
    torch.testing.assert_close(got, OPERATIONS[name](z), rtol=1e-12, atol=1e-12)


def test_every_way_to_call_them_is_spelled_out() -> None:
    x = draw(1, 4)
    torch.testing.assert_close(PLAIN[F.layer_norm](x, (4,)), PLAIN[torch.layer_norm](x, (4,), None, None, 1e-5, True))


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.InstanceNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)])
def test_derivatives_by_torch_are_right_through_normalisations_of_the_module(layer: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.layer, self.outer = nn.Linear(2, 8), layer, nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.layer(self.inner(x).tanh().view(1, 2, 4)).tanh().reshape(-1))[0]

    def residual(u: Net, x: Tensor) -> Tensor:
        h = hessian(lambda y: u(y))(x)
        assert isinstance(h, Tensor)
        return h.diagonal().sum()

    assert verify(residual, Net().to(DTYPE), draw(3, 2, seed=5))["residual"] < FINE
