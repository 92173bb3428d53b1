"""What a model scores on the test split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from .meters import Evaluation, Meter
from .session import Session

LARGEST_BATCH = 1000
TRAINING_BATCHES = 4  # without gradients so many micro-batches of training fit where one does


@contextmanager
def _averaged(optimizer: Optimizer) -> Iterator[None]:
    """Let the model have the parameters that are to be judged, where they are others than those of training."""
    switches: Any = optimizer if hasattr(optimizer, "eval") else None
    if switches:
        switches.eval()
    try:
        yield
    finally:
        if switches:
            switches.train()


@torch.no_grad()
def evaluate(session: Session, stopped: Callable[[], object] = lambda: False) -> Evaluation | None:
    """Return mean loss and accuracies over the test split. A collective call: each process takes its share.

    The model answers in evaluation mode; its own mode is restored.

    Args:
        session: the run's objects.
        stopped: asked before each batch, in a run of one process, whether to leave off.

    Returns:
        The means, or None where it left off.
    """
    config, ranks, model = session.config, session.ranks, session.model
    ranks.copy_buffers(model)
    micro_batch = max(1, config.batch_size // (ranks.world * config.accumulate))
    own = ranks.share(torch.arange(len(session.data.test)))
    batches = own.split(min(LARGEST_BATCH, TRAINING_BATCHES * micro_batch))
    meter = Meter(session.device, session.classes)
    was_training = model.training
    model.eval()
    try:
        with _averaged(session.optimizer), closing(session.batches(session.data.test, batches)) as ahead:
            for inputs, targets in ahead:
                if ranks.world == 1 and stopped():
                    return None
                outputs = session.answer(model, inputs)
                meter.add(session.loss(outputs, targets), outputs, targets, top=True)
    finally:
        model.train(was_training)
    return meter.read(ranks)
