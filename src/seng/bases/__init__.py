"""Base optimizers that move along the preconditioned gradient. Adding one is a line in the table."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from ..errors import OptionError, choose
from .fused import adamw, sgd
from .groups import add_group
from .loading import load_base, sound
from .muon import AUXILIARY_LR, hidden_matrices, muon
from .rehearsal import rehearsable, require_no_closure, require_steps, taken_back
from .settings import LEARNING_RATES, BaseSettings

__all__ = [
    "AUXILIARY_LR",
    "BASES",
    "LEARNING_RATES",
    "BaseSettings",
    "add_group",
    "build_bases",
    "hidden_matrices",
    "load_base",
    "muon",
    "rehearsable",
    "sound",
    "taken_back",
]

BASES: dict[str, Callable[[nn.Module, BaseSettings], list[Optimizer]]] = {"sgd": sgd, "adamw": adamw, "muon": muon}


def build_bases(
    base: str | Callable[[list[nn.Parameter]], Optimizer], model: nn.Module, settings: BaseSettings
) -> list[Optimizer]:
    """Return the optimizers behind a name of the table or a factory ``params -> Optimizer``.

    Raises:
        OptionError: The base cannot be made with these options, or cannot take a step once it is.
    """
    made = [_made_by(base, model, settings)] if callable(base) else _named(base, model, settings)
    for each in made:
        require_no_closure(each)
        if rehearsable(each) and not each.state:
            require_steps(each)
    return made


def _made_by(factory: Callable[[list[nn.Parameter]], Optimizer], model: nn.Module, settings: BaseSettings) -> Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.extra:
        raise OptionError(
            "SENG()", "base_options do not go with a factory", expected="None", got=sorted(map(str, settings.extra)),
            fix="Give them to the optimizer that the factory makes",
        )  # fmt: skip
    try:
        made = factory(list(parameters))
    except Exception as error:
        raise OptionError(
            "SENG()", "the base factory failed", expected="a torch.optim.Optimizer from a list of parameters",
            got=type(error).__name__, fix=f"Correct it: {error}",
        ) from error  # fmt: skip
    own = {id(p) for p in parameters}
    if not isinstance(made, Optimizer) or not any(id(p) in own for group in made.param_groups for p in group["params"]):
        raise OptionError(
            "SENG()", "base factory out of range", expected="a torch.optim.Optimizer", got=type(made).__name__,
            fix="Return an optimizer on the parameters it was given",
        )  # fmt: skip
    return made


def _named(name: str, model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    build = choose(BASES, name, call="SENG()", option="base")
    try:
        return build(model, settings)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            "SENG()", f"base {name!r} does not take base_options", expected="its keyword arguments",
            got=settings.extra, fix=f"Correct them: {error}",
        ) from error  # fmt: skip
