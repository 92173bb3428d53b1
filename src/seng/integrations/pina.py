"""PINA (``pina-mathlab``): ``use_natural_gradient(solver)`` before ``Trainer(solver).train()``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pina.optim import TorchOptimizer  # pyright: ignore[reportMissingImports]

from ..errors import ModelError
from .capture import Recorder, attribute
from .optimizer import NaturalGradientOptimizer

CALL = "use_natural_gradient()"


class NaturalGradient(TorchOptimizer):
    """The optimizer of one solver, in PINA's form.

    Args:
        solver: A solver with a single model, such as ``PINN``.
        **options: ``lr``, and options of ``seng.func.NaturalGradient``.
    """

    def __init__(self, solver: Any, **options: Any):
        super().__init__(NaturalGradientOptimizer, **options)
        self._solver = [solver]  # in a list: the solver holds this object

    def hook(self, parameters: Any) -> None:
        """Make the optimizer of these parameters."""
        solver = self._solver[0]

        @contextmanager
        def recording(recorder: Recorder) -> Iterator[None]:
            with attribute(solver.loss, "forward", lambda got, wanted: recorder.square(got - wanted)):
                yield

        self._optimizer_instance = NaturalGradientOptimizer(parameters, solver.model, recording, **self.kwargs)


def use_natural_gradient(solver: Any, **options: Any) -> Any:
    """Let a solver train by natural gradients.

    Make the model float64 (``model.double()``) and its points, too: in float32 a run ends early. Weights of conditions,
    hard constraints, unknown parameters and callbacks work as they do with other optimizers.

    Args:
        solver: A solver with a single model, such as ``PINN``, whose loss is ``torch.nn.MSELoss`` (the default).
        **options: ``lr``, and options of ``seng.func.NaturalGradient``.

    Returns:
        The same solver.

    Raises:
        ModelError: The solver has several models, or another loss.
        OptionError: An option is unknown or out of range.

    Cost: see ``seng.integrations.capture``.
    """
    models = len(getattr(solver, "_pina_models", None) or [])
    if models != 1:
        raise ModelError(CALL, "solver cannot be used", expected="one model", got=models, fix="Use PINN")
    if not isinstance(solver.loss, torch.nn.MSELoss):
        raise ModelError(
            CALL, "loss is no mean squared error", expected="torch.nn.MSELoss", got=type(solver.loss).__name__,
            fix="Make the solver without loss",
        )  # fmt: skip
    solver._pina_optimizers = [NaturalGradient(solver, **options)]
    return solver
