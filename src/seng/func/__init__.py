"""Natural gradients over all parameters at once, for losses that are functions of the parameters.

One Gram matrix over every parameter: the choice where data are few and problems ill-conditioned (physics-informed
networks, regression, inverse problems). Written on torch.func, without hooks.

Canonical shapes and scales. A term t of the loss has a function f_t of the parameters and its samples, n_t numbers in
all (rows; a sample may give several), and a weight w_t. Its rows and coefficients are scaled by sqrt(w_t / n_t), and
all terms' are put one below the other:

    J [n, p]   rows        sqrt(w_t / n_t) * d f_ti / d parameters        p parameters, flat
    r [n]      residuals   sqrt(w_t / n_t) * f_ti
    loss       |r|^2 / 2 = sum_t w_t * mean_i(f_ti^2) / 2                 (mean squares: half of torch's ``mse_loss``)
    gradient   g = J^T r
    K [n, n]   J J^T
    direction  d = J^T (K + lambda I)^-1 r = (J^T J + lambda I)^-1 g      a step is parameters - length * d

The other choices of Fisher keep the scales and have other rows: ``empirical``, of the samples' losses f (loss w_t mean
f, r = sqrt(w_t / n_t)), ``sampled``, of a classifier's losses at labels drawn from its own predictions.
"""

from .config import Settings
from .covariance import Covariance, covariance
from .damping import DAMPING_RULES
from .derivatives import Taylor, gradient, laplacian, partial, taylor
from .direction import Info, natural_gradient
from .fishers import FISHERS, Fisher
from .fitting import RESAMPLING, Fit, Record, fit
from .linesearch import LINE_SEARCHES
from .optimizer import NaturalGradient, StepResult
from .problem import NotFiniteError, SingularError
from .ranks import RANKS, Ranks
from .robust import ROBUST_LOSSES, robust
from .solvers import SOLVERS, Solver
from .verify import verify

__all__ = [
    "DAMPING_RULES",
    "FISHERS",
    "LINE_SEARCHES",
    "RANKS",
    "RESAMPLING",
    "ROBUST_LOSSES",
    "SOLVERS",
    "Covariance",
    "Fisher",
    "Fit",
    "Info",
    "NaturalGradient",
    "NotFiniteError",
    "Ranks",
    "Record",
    "Settings",
    "SingularError",
    "Solver",
    "StepResult",
    "Taylor",
    "covariance",
    "fit",
    "gradient",
    "laplacian",
    "natural_gradient",
    "partial",
    "robust",
    "taylor",
    "verify",
]
