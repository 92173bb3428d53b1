"""The planner: sizes are those of the layer, choices are the cheapest allowed, budgets are kept or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seng import DenseThenSparse, Options, plan
from seng.errors import MemoryBudgetError, OptionError
from seng.estimators import ESTIMATORS, Auto, Estimator, Exact, Form, LowRank, Operator, PaperCode, Sketched
from seng.estimators import Rows as RowsForm
from seng.estimators.auto import EXACT_LIMIT
from seng.estimators.paper_code import ReleasedLowRank, ReleasedRows
from seng.per_sample import LayerGradients, Lookup, Product, Rows, Shape
from seng.planning.choice import choose_all, choose_block, priced, total_bytes
from seng.solve import DirectState

UNCOUNTED = 0.1  # share of bytes the plan leaves out: indices and weights of samplings

PRODUCT = Product(torch.zeros(2, 8, 4, 30), torch.zeros(2, 8, 4, 20), True)
LOOKUP = Lookup(torch.zeros(8, 4, dtype=torch.long), torch.zeros(8, 4, 20), 50)
ROWS = Rows.of((torch.zeros(8, 20), torch.zeros(8, 20)))
HUGE = Shape("product", n=256, p=4096 * 4096, s=196, d_in=4096, d_out=4096)
EACH_STEP = Options(refresh_every=1)
TALL = Shape("product", n=32, p=2048 * 512, s=1024, d_in=2048, d_out=512)

sizes = st.builds(
    lambda kind, n, c, s, d_in, d_out: (
        Shape(kind, n, c * d_in * d_out, c, s, d_in, d_out)
        if kind == "product"
        else Shape(kind, n, d_in * d_out, 1, s, 1, d_out) if kind == "lookup" else Shape(kind, n, d_out)
    ),
    st.sampled_from(["product", "lookup", "rows"]),
    st.integers(2, 512),
    st.integers(1, 4),
    st.integers(1, 200),
    st.integers(1, 3000),
    st.integers(1, 3000),
)  # fmt: skip
estimators = st.sampled_from([kind() for kind in ESTIMATORS.values()])
FORMS = (Operator(), RowsForm(), Sketched(rows=7), LowRank(2, rows=7), ReleasedRows(rows=7), ReleasedLowRank(2, rows=7))


def test_shape_is_read_off_the_layer() -> None:
    assert PRODUCT.shape == Shape("product", n=8, p=2 * 20 * 31, c=2, s=4, d_in=30, d_out=20)
    assert LOOKUP.shape == Shape("lookup", n=8, p=50 * 20, c=1, s=4, d_in=1, d_out=20, inputs=torch.int64)
    assert ROWS.shape == Shape("rows", n=8, p=40)


@pytest.mark.parametrize("io", [PRODUCT, LOOKUP, ROWS], ids=["product", "lookup", "rows"])
@pytest.mark.parametrize("form", FORMS)  # how much truncation holds depends on the data
def test_planned_bytes_are_the_bytes_held(io: LayerGradients, form: Form) -> None:
    for taken in form.forms(io.shape):
        factor = taken.build(io, 1.0, torch.float32, torch.Generator())
        planned = priced(taken, io.shape, Options(), 0).nbytes
        assert planned == pytest.approx(factor.nbytes() + 4 * factor.n**2, rel=UNCOUNTED)


def test_some_form_takes_every_kind_of_layer() -> None:
    assert all(Exact().forms(io.shape) for io in (PRODUCT, LOOKUP, ROWS))


@settings(max_examples=100, deadline=None)
@given(size=sizes, estimator=estimators, interval=st.integers(1, 100))
def test_choice_is_an_allowed_form_with_its_costs(size: Shape, estimator: Estimator, interval: int) -> None:
    options = Options(estimator=estimator, refresh_every=interval)
    choice = choose_block(size, options, 0)
    assert choice.form in (estimator.forms(size) or Exact().forms(size))
    assert choice.nbytes > 0
    assert choice.refresh_flops > 0
    assert choice.apply_flops > 0
    assert choice.reason
    costs = priced(choice.form, size, options, 0)
    assert (costs.nbytes, costs.refresh_flops, costs.apply_flops) == (
        choice.nbytes, choice.refresh_flops, choice.apply_flops,
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(size=sizes, interval=st.integers(1, 100))
def test_exact_takes_the_least_work_a_step(size: Shape, interval: int) -> None:
    options = Options(estimator=Exact(), refresh_every=interval)
    choice = choose_block(size, options, 0)
    kinds = {"rows": (RowsForm,), "lookup": (Operator,), "product": (Operator, RowsForm)}[size.kind]
    works = {kind: priced(kind(), size, options, 0).work(interval) for kind in kinds}
    assert works[type(choice.form)] == min(works.values())


def test_embeddings_and_norms_are_exact_under_auto() -> None:
    for kind, name in (("lookup", "operator"), ("rows", "rows")):
        size = Shape(kind, n=256, p=50_000 * 512, s=128, d_out=512)
        assert choose_block(size, EACH_STEP, 0).form.name == name


def test_linear_layers_without_positions_keep_inputs_and_gradients() -> None:
    size = Shape("product", n=256, p=785 * 1000, d_in=784, d_out=1000)
    assert choose_block(size, EACH_STEP, 0).form == Operator()


def test_auto_sketches_what_is_too_expensive_exactly() -> None:
    assert priced(Operator(), HUGE, EACH_STEP, 0).nbytes > EXACT_LIMIT
    assert choose_block(HUGE, EACH_STEP, 0).form == LowRank()
    assert choose_block(HUGE, EACH_STEP.with_(estimator=Exact()), 0).form in (Operator(), RowsForm())


def test_paper_limit_decides_where_it_is_given() -> None:
    assert choose_block(TALL, EACH_STEP.with_(estimator=Auto(explicit_limit=TALL.p)), 0).form != LowRank()
    below = choose_block(TALL, EACH_STEP.with_(estimator=Auto(explicit_limit=TALL.p - 1)), 0)
    assert below.form == LowRank()
    assert "above" in below.reason


def test_paper_limit_saves_memory_even_at_more_work() -> None:
    size = Shape("product", n=256, p=4608 * 512, s=49, d_in=4608, d_out=512)  # the last layers of ResNets on ImageNet
    exact, sketched = (
        choose_block(size, Options(estimator=Auto(32, explicit_limit=limit), refresh_every=200), 0)
        for limit in (size.p, 700_000)
    )
    assert (exact.form, sketched.form) == (RowsForm(), LowRank(32))
    assert sketched.nbytes < exact.nbytes / 10
    assert sketched.apply_flops > exact.apply_flops + exact.refresh_flops / 200
    last = Shape("product", n=256, p=900 * 1000, d_in=900, d_out=1000)  # one position: exact holds less already
    paper = Auto(rows=1000, explicit_limit=700_000)
    assert choose_block(last, EACH_STEP.with_(estimator=paper), 0).form == Operator()


def test_threshold_of_the_released_code_marks_products_alone() -> None:
    paper = Options(estimator=PaperCode(), power=1.0)
    above, below = replace(TALL, p=700_001), replace(TALL, p=700_000)
    assert choose_block(above, paper, 0).form == ReleasedLowRank()
    assert choose_block(below, paper, 0).form == ReleasedRows()
    assert choose_block(Shape("lookup", n=8, p=10**7, s=4, d_out=20), paper, 0).form == Operator()


@settings(max_examples=100, deadline=None)
@given(layers=st.lists(sizes, min_size=1, max_size=5), estimator=estimators, share=st.floats(0.001, 1.5))
def test_memory_budget_is_kept_or_refused(layers: list[Shape], estimator: Estimator, share: float) -> None:
    named = {str(k): size for k, size in enumerate(layers)}
    options = Options(estimator=estimator)
    free = choose_all(named, options, 0, "plan()")
    budget = max(1, int(share * total_bytes(free)))
    try:
        kept = choose_all(named, options.with_(memory_budget=budget), 0, "plan()")
    except MemoryBudgetError as error:
        assert share < 1
        least = int(error.expected.removeprefix("at least ").removesuffix(" bytes"))
        assert least > budget
        assert total_bytes(choose_all(named, options.with_(memory_budget=least), 0, "plan()")) <= least
        return
    assert total_bytes(kept) <= budget
    for name, choice in kept.items():
        assert choice.form in (
            *estimator.smaller(named[name]),
            *estimator.forms(named[name]),
            *Exact().forms(named[name]),
        )
    if share >= 1:
        assert kept == free


def test_budget_that_cannot_be_met_names_the_largest_layer() -> None:
    expected = r"^plan\(\): no plan fits memory_budget: expected at least \d+ bytes, got 10 at layer b\."
    with pytest.raises(MemoryBudgetError, match=expected):
        choose_all({"a": ROWS.shape, "b": PRODUCT.shape}, Options(memory_budget=10), 0, "plan()")


def test_plan_keeps_the_budget_of_a_model() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)), torch.zeros(32, 3, 14, 14)
    free = plan(model, x)
    budget = free.nbytes // 2
    kept = plan(model, x, memory_budget=budget)
    assert kept.nbytes <= budget
    assert "to fit the memory budget" in str(kept)
    with pytest.raises(MemoryBudgetError, match="no plan fits memory_budget"):
        plan(model, x, memory_budget=1000)


def test_plan_checks_the_refresh_schedule() -> None:
    with pytest.raises(OptionError, match=r"^plan\(\): refresh_every schedule out of range"):
        plan(nn.Linear(2, 2), torch.zeros(3, 2), refresh_every=lambda step: 0)


def test_modules_that_share_a_parameter_are_planned_with_one_factorisation() -> None:
    one = PRODUCT.shape
    both = replace(one, kind="tied", members=(one, one))
    single, pair = priced(Operator(), one, EACH_STEP, 0), choose_block(both, EACH_STEP, 0)
    solve = single.solver.flops * one.n**3
    assert pair.refresh_flops - solve == pytest.approx(2 * (single.refresh_flops - solve))
    assert pair.apply_flops - 4 * one.n**2 == pytest.approx(2 * (single.apply_flops - 4 * one.n**2))


@pytest.mark.parametrize("order", ["previous", "current"])
def test_last_step_of_a_dense_schedule_makes_curvature_that_is_held(order: str) -> None:
    options = Options(curvature_batch=order, refresh_every=DenseThenSparse(1, 10, until=3))
    solvers = [choose_block(PRODUCT.shape, options, step).solver for step in range(4)]
    served_once = [order == "current" and step < 2 for step in range(4)]
    assert [solver is DirectState for solver in solvers] == served_once
