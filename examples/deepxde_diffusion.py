# pyright: reportMissingImports=false
"""The coefficient C of u_t = C u_xx + f from ten values of u, in DeepXDE with natural gradients.

pip install 'seng[deepxde]'
python examples/deepxde_diffusion.py [iterations]
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import numpy as np
import torch

from seng.integrations.deepxde import natural_gradient

dde.config.set_default_float("float64")
dde.config.set_random_seed(0)


def solution(z: Any) -> Any:
    """U = exp(-t) sin(pi x), where C = 1."""
    return np.exp(-z[:, 1:]) * np.sin(np.pi * z[:, :1])


def main(iterations: int) -> float:
    """Find C, and return its error."""
    c = dde.Variable(2.0)

    def equation(z: Any, u: Any) -> Any:
        source = torch.exp(-z[:, 1:]) * (1 - np.pi**2) * torch.sin(np.pi * z[:, :1])
        return dde.grad.jacobian(u, z, i=0, j=1) - c * dde.grad.hessian(u, z, i=0, j=0) + source

    domain = dde.geometry.GeometryXTime(dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1))
    measured = np.stack([np.linspace(-1, 1, 10), np.ones(10)], 1)
    conditions = [
        dde.icbc.DirichletBC(domain, solution, lambda _, on: on),
        dde.icbc.IC(domain, solution, lambda _, on: on),
        dde.icbc.PointSetBC(measured, solution(measured)),
    ]
    data = dde.data.TimePDE(domain, equation, conditions, 60, 20, 20, anchors=measured)
    model = dde.Model(data, dde.nn.FNN([2, 16, 16, 1], "tanh", "Glorot uniform"))
    model.compile(natural_gradient(model, c), external_trainable_variables=c)
    model.train(iterations=iterations, display_every=max(1, iterations // 4))
    error = abs(float(c.detach()) - 1)
    print(f"C is found up to {error:.1e}")
    return error


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
