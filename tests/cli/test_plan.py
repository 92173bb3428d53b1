"""``seng plan``, as a person and as a script calls it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

from seng import plan as plan_model
from seng.apps.cli.plan import forecast_run, plan_command, plan_run, worlds
from seng.apps.recipes import RECIPES, build_recipe
from seng.apps.train.data import signature
from seng.apps.train.models import build_model
from seng.apps.train.optimizers import seng_options
from seng.apps.train.settings import override
from seng.planning.report import INTERVALS

ROOT = Path(__file__).parents[2]
QUICK = ("digits", "char-gpt")  # whose forward pass takes no second on one core


def test_plan_prints_a_table_with_reasons_and_totals(call):
    code, printed = call("plan", "digits")
    assert code == 0
    lines = printed.splitlines()
    assert lines[0] == "digits, batches of 64, refreshed every 10 steps"
    rows = [line.split() for line in lines if "exact is affordable" in line]
    assert [row[:2] for row in rows] == [["0", "Conv2d"], ["2", "Conv2d"], ["6", "Linear"]]
    assert "n 64, s 64, 9 -> 16" in printed
    planned = plan_run(build_recipe("digits"))
    assert planned.totals()[0] in lines
    assert f"every 200: {planned.share(200):.1%}" in printed


def test_plan_for_scripts_is_the_library_s_plan(call):
    changes = ("--batch-size", "32", "--set", "seng.power=1")
    code, printed = call("plan", "digits", *changes, "--intervals", "1,5", "--json")
    assert code == 0
    told = json.loads(printed)
    config = override(build_recipe("digits"), {"batch_size": "32", "seng.power": "1"})
    assert told == {"recipe": "digits", "batch_size": 32, "processes": 1, **plan_run(config).to_dict((1, 5))}
    assert told["shares"].keys() == {"1", "5", "10"}
    assert {row["dimensions"]["n"] for row in told["rows"]} == {32}
    assert {row["solver"] for row in told["rows"]} == {"cholesky"}


def test_plan_tells_of_dense_refreshes_and_plans_for_those_after(call):
    code, printed = call("plan", "digits", "--set", "refresh_always_until=25", "--set", "refresh_every=7")
    assert code == 0
    assert "refreshed every 7 steps and at the first 25" in printed
    assert "every 7: " in printed


def test_plan_is_what_one_of_several_processes_does(call):
    code, printed = call("plan", "digits", "--processes", "3", "--json")
    assert code == 0
    told = json.loads(printed)
    assert {row["dimensions"]["n"] for row in told["rows"]} == {22}  # 64 samples are dealt as 22, 21, 21
    assert call("plan", "digits", "--processes", "3")[1].startswith("digits, batches of 64 over 3 processes,")


FORETOLD = ("--ranks", "6", "--bandwidth", "2", "--latency", "30", "--rate", "100", "--collectives", "tree")


def test_plan_over_ranks_tells_a_step_of_every_strategy(call):
    code, printed = call("plan", "digits", "--processes", "2", *FORETOLD)
    assert code == 0
    lines = printed.splitlines()
    assert lines[0].startswith("digits, 32 samples a rank: ms a step")
    assert lines[2].split() == ["ranks", "plain", "local", "global", "sharded"]
    assert [line.split()[0] for line in lines[4:8]] == ["1", "2", "4", "6"]


def test_plan_over_ranks_for_scripts_is_the_library_s(call):
    code, printed = call("plan", "digits", *FORETOLD, "--step-ms", "7", "--step-rate", "20", "--json")
    assert code == 0
    network = {"latency": 30e-6, "bandwidth": 2e9, "shape": "tree"}
    expected = forecast_run(build_recipe("digits"), 1, [1, 2, 4, 6], network, 100e9, 7e-3, 20e9)
    told = json.loads(printed)
    assert told["forecasts"] == [vars(row) for row in expected]
    assert told["forecasts"][0]["seconds"] == 7e-3
    assert told["taken"] == {"rate_gflops": 100, "rate_assumed": False, "bandwidth_gb": 2, "latency_us": 30}


def test_plan_over_ranks_says_what_it_takes_a_rank_to_do(call):
    _, assumed = call("plan", "digits", "--ranks", "2")
    assert "ASSUMED 50 GFLOP/s a rank, a CPU core's: give yours with --rate; 10 GB/s and 20 us a message" in assumed
    _, given = call("plan", "digits", "--ranks", "2", "--rate", "50", "--bandwidth", "3")
    assert "at 50 GFLOP/s a rank, 3 GB/s and 20 us a message (--bandwidth, --latency)" in given
    assert "ASSUMED" not in given
    assert json.loads(call("plan", "digits", "--ranks", "2", "--json")[1])["taken"]["rate_assumed"]


def test_numbers_of_ranks_are_powers_of_two_and_the_last():
    assert worlds(1) == [1]
    assert worlds(4) == [1, 2, 4]
    assert worlds(6) == [1, 2, 4, 6]


@pytest.mark.parametrize("name", RECIPES)
def test_plan_of_every_recipe_needs_neither_data_nor_memory(call, name: str, monkeypatch, tmp_path):
    monkeypatch.setenv("SENG_DATA", str(tmp_path))
    code, printed = call("plan", name, "--json")
    assert code == 0
    told = json.loads(printed)
    with torch.device("meta"):
        model = build_model(build_recipe(name).model, signature(build_recipe(name).data))
    covered = sum(row["parameters"] for row in told["rows"])
    passing = sum(p.numel() for key, p in model.named_parameters() if key in told["passed_through"])
    assert covered + passing == sum(p.numel() for p in model.parameters())
    assert told["parameter_bytes"] == 4 * sum(p.numel() for p in model.parameters())
    assert told["unused"] == []


@pytest.mark.parametrize("name", QUICK)
def test_plan_without_data_is_that_of_the_real_model(name: str):
    config = override(build_recipe(name), {"batch_size": "8", "refresh_always_until": "0"})
    data = signature(config.data)
    seng = config.optimizer.seng
    assert seng is not None
    real = plan_model(build_model(config.model, data), data.inputs(8), **seng_options(seng, 1))
    assert plan_run(config) == real


def test_plan_default_intervals_are_the_library_s(call):
    assert inspect.signature(plan_command).parameters["intervals"].default == ",".join(map(str, INTERVALS))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "unknown recipe"),
        (("digits", "--optimizer", "sgd"), "the optimizer keeps no curvature: expected seng, got 'sgd'"),
        (("digits", "--intervals", "1,x"), "bad --intervals: expected whole numbers above 0"),
        (("digits", "--intervals", "0"), "bad --intervals"),
        (("digits", "--set", "damping"), "seng plan: bad --set: expected name=value, got 'damping'"),
        (("digits", "--set", "dampin=1"), "Did you mean 'damping'"),
        (("digits", "--batch-size", "none"), "bad value for batch_size"),
        (("digits", "--set", "estimator=exat"), "Did you mean 'exact'"),
        (("digits", "--processes", "0"), "--processes"),
        (("digits", "--ranks", "0"), "--ranks"),
        (("digits", "--ranks", "2", "--collectives", "star"), "unknown shape: expected 'ring' | 'tree'"),
        (("digits", "--ranks", "2", "--bandwidth", "0"), "--bandwidth"),
        ((), "Missing argument"),
    ],
)
def test_plan_refuses_bad_usage_with_2(call, arguments, words: str):
    code, printed = call("plan", *arguments)
    assert code == 2
    assert words in printed
    assert "Traceback" not in printed


def test_accuracy_of_plans_is_that_of_the_committed_results():
    told = json.loads((ROOT / "benchmarks" / "results" / "plan_accuracy.json").read_text())["recipes"]
    off = sorted(row["measured_over_predicted"]["step"] for row in told.values())
    assert len(off) == 4
    page = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    assert f"{off[0]:.1f} to {off[-1]:.1f} times the planned share" in page
