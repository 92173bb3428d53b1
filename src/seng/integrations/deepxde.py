"""DeepXDE with its PyTorch backend: ``model.compile(natural_gradient(model))``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from torch import Tensor

from ..errors import BatchError, ModelError
from .capture import Recorder, attribute
from .optimizer import NaturalGradientOptimizer

CALL = "natural_gradient()"
DATA = ("PDE", "TimePDE", "Function", "DataSet")  # whose residuals are of single points


def natural_gradient(
    model: Any, external_trainable_variables: Tensor | Sequence[Tensor] = (), **options: Any
) -> NaturalGradientOptimizer:
    """Return an optimizer for ``model.compile``.

    Use ``dde.config.set_default_float("float64")``: in float32 a run ends early. The loss must be the mean squared
    error, which is the default; ``loss_weights``, output and feature transforms, callbacks and resampling of points
    work as they do with other optimizers.

    Args:
        model: A ``deepxde.Model`` whose data are ``PDE``, ``TimePDE``, ``Function`` or ``DataSet``.
        external_trainable_variables: Unknown numbers of an inverse problem, as they are passed to ``model.compile``.
        **options: ``lr``, and options of ``seng.func.NaturalGradient``.

    Returns:
        A torch optimizer.

    Raises:
        ModelError: The model is of another backend, has a regularizer, or data whose residuals depend on many points.
        OptionError: An option is unknown or out of range.

    Cost: see ``seng.integrations.capture``; a step takes about as long as five to ten of Adam's at 500 points.
    """
    net, data = model.net, model.data
    _require_usable(net, data)
    single = isinstance(external_trainable_variables, Tensor)
    others = [external_trainable_variables] if single else list(external_trainable_variables)

    @contextmanager
    def recording(recorder: Recorder) -> Iterator[None]:
        original = data.losses_train

        def losses_train(targets: Any, outputs: Any, loss_fn: Any, *args: Any, **kwargs: Any) -> Any:
            _require_mean_squares(loss_fn)
            return original(targets, outputs, recorder.mean, *args, **kwargs)

        recorder.places = lambda k, count: place_of(k, count, getattr(data, "num_bcs", None) or [])
        with attribute(data, "losses_train", losses_train):
            yield

    return NaturalGradientOptimizer([*net.parameters(), *others], net, recording, **options)


def _require_usable(net: Any, data: Any) -> None:
    facts = {
        "not a PyTorch network": (hasattr(net, "named_parameters"), "DeepXDE's PyTorch backend", type(net).__name__),
        "the network has a regularizer": (getattr(net, "regularizer", None) is None, "None", "a regularizer"),
        "data cannot be used": (type(data).__name__ in DATA, " | ".join(DATA), type(data).__name__),
    }
    for problem, (good, expected, got) in facts.items():
        if not good:
            raise ModelError(CALL, problem, expected=expected, got=got, fix="Change it, or use another optimizer")


def place_of(k: int, count: int, boundary: list[int]) -> slice:
    """Return which inputs the k-th of the errors depends on: DeepXDE puts those of conditions first.

    Args:
        k: Number of the error: equations come first, then conditions.
        count: Number of errors.
        boundary: Number of points of each condition.
    """
    ends = [0, *accumulate(boundary)]
    condition = k - (count - len(boundary))
    return slice(ends[-1], None) if condition < 0 else slice(ends[condition], ends[condition + 1])


def _require_mean_squares(loss_fn: Any) -> None:
    names = {getattr(fn, "__name__", str(fn)) for fn in (loss_fn if isinstance(loss_fn, list | tuple) else [loss_fn])}
    if names != {"mean_squared_error"}:
        raise BatchError(
            "step()", "loss is no mean squared error", expected="loss='MSE'", got=sorted(names),
            fix="Call model.compile without loss",
        )  # fmt: skip
