"""The pages say what the code has: every option, table, error, counter, file and link."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import seng
import seng.apps
from seng import BASES, SENG, Options, schedules
from seng.config import ARGUMENTS, CHOICES, OptionKeywords
from seng.distributed import STRATEGIES
from seng.errors import SengError
from seng.estimators import ESTIMATORS
from seng.estimators.auto import EXACT_LIMIT, REFRESH_SHARE
from seng.layers import LAYERS, UNSUPPORTED_CONTAINERS
from seng.sketch import SKETCHES
from seng.testing import check_estimator, check_layer, check_sketch

from . import options_table
from .pages import DOCS, PAGES, README, ROOT, named, section, tables, text_of

SOURCE = Path(seng.__file__).parent
PAGE = DOCS / "layers.md"
FORMS = ["operator", "rows", "sketched-rows", "implicit", "truncated", "paper-code"]


def test_options_table_is_that_of_the_docstring() -> None:
    assert options_table.table() in text_of(DOCS / "options.md"), "run: python tests/docs/options_table.py"


def test_every_option_is_described() -> None:
    assert list(options_table.described()) == list(inspect.signature(Options).parameters)


@pytest.mark.parametrize("option", CHOICES)
def test_every_choice_of_an_option_is_described(option: str) -> None:
    assert all(f'"{choice}"' in options_table.described()[option] for choice in CHOICES[option])


def test_arguments_of_the_optimizer_have_their_defaults() -> None:
    rows = tables(section(DOCS / "options.md", "The optimizer's own"))["argument"]
    signature = inspect.signature(SENG).parameters
    expected = {
        name: repr(parameter.default).replace("'", '"')
        for name, parameter in signature.items()
        if parameter.default is not parameter.empty and name not in OptionKeywords.__annotations__
    }
    assert {row[0].strip("`"): row[1].strip("`") for row in rows} == expected


def test_former_options_are_arguments_of_what_the_page_says() -> None:
    rows = tables(section(DOCS / "options.md", "Former options"))["option"]
    said = {row[0].strip("`"): row[1] for row in rows if row[0].strip("`") in ARGUMENTS}
    assert set(said) == set(ARGUMENTS)
    for name, (_, argument, _) in ARGUMENTS.items():
        assert said[name].startswith(f"`{argument}` of")


def test_estimators_have_their_signatures() -> None:
    for row in tables(section(PAGE, "Estimators"))["estimator"]:
        kind, arguments = re.fullmatch(r"`seng\.(\w+)\((.*)\)`", row[1]).groups()  # type: ignore[union-attr]
        parameters = inspect.signature(getattr(seng, kind)).parameters
        assert getattr(seng, kind) is ESTIMATORS[row[0].strip("`")]
        for text in arguments.split(", "):
            name, value = text.split("=")
            assert parameters[name].default == ast.literal_eval(value)


def test_schedules_have_their_signatures() -> None:
    for name in named(tables(section(DOCS / "options.md", "Schedules"))["name"]):
        kind, arguments = re.fullmatch(r"seng\.(\w+)\((.*)\)", name).groups()  # type: ignore[union-attr]
        parameters = inspect.signature(getattr(schedules, kind)).parameters.values()
        shown = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
        assert arguments.split(", ") == [text for text in shown if not text.startswith("last_epoch")]


@pytest.mark.parametrize(
    ("heading", "table", "names"),
    [
        ("Layers", "layer", [f"nn.{kind.__name__}" for kind in LAYERS]),
        ("Sketches", "sketch", list(SKETCHES)),
        ("Estimators", "estimator", list(ESTIMATORS)),
        ("Estimators", "form", FORMS),
        ("Bases", "base", list(BASES)),
        ("Strategies", "distributed", list(STRATEGIES)),
    ],
)
def test_every_line_of_a_table_is_documented(heading: str, table: str, names: list[str]) -> None:
    assert sorted(named(tables(section(PAGE, heading))[table])) == sorted(names)


def test_containers_that_pass_through_are_documented() -> None:
    rows = named(tables(section(PAGE, "What passes through"))["module"])
    assert {f"nn.{kind.__name__}" for kind in UNSUPPORTED_CONTAINERS} <= set(rows)


def test_limits_of_the_planner_are_those_of_the_page() -> None:
    assert f"{EXACT_LIMIT // 2**20} MiB" in section(PAGE, "Estimators")
    assert f"{REFRESH_SHARE:.0f} backward passes" in section(PAGE, "Estimators")


def test_every_error_is_documented() -> None:
    kinds = [kind.__name__ for kind in SengError.__subclasses__() if kind.__module__ == SengError.__module__]
    assert sorted(named(tables(section(DOCS / "errors.md", "Errors"))["error"])) == sorted(kinds)


def test_every_counter_is_documented() -> None:
    source = "".join(text_of(SOURCE / name) for name in ("preconditioner.py", "samples.py", "refreshing/refresh.py"))
    counters = set(re.findall(r'count\(\s*"(\w+)"|_counters\["(\w+)"\]', source))
    rows = tables(section(DOCS / "errors.md", "What is survived, and counted"))["counter"]
    assert set(named(rows)) == {a or b for a, b in counters}


@pytest.mark.parametrize(("package", "folder"), [(seng, "src/seng/"), (seng.apps, "src/seng/apps/")])
def test_every_file_has_its_place_in_the_architecture(package: ModuleType, folder: str) -> None:
    places = named(tables(section(DOCS / "architecture.md", "Data flows one way"))[f"place in `{folder}`"])
    found = [f"{m.name}/" if m.ispkg else f"{m.name}.py" for m in pkgutil.iter_modules(package.__path__)]
    assert sorted(places) == sorted(found)


def test_contract_suites_named_in_the_architecture_exist() -> None:
    text = text_of(DOCS / "architecture.md")
    for check in (check_estimator, check_layer, check_sketch):
        assert check.__name__ in text


def test_every_export_has_its_place_in_the_api() -> None:
    shown = re.findall(r"^::: seng\.(\w+)$", text_of(DOCS / "api.md"), re.MULTILINE)
    assert set(seng.__all__) - {"BASES", "__version__"} <= set(shown)


def test_every_page_is_in_the_navigation() -> None:
    pages = re.findall(r"(\S+\.md)", text_of(ROOT / "mkdocs.yml"))
    assert sorted(pages) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(path)):
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        assert page.exists(), target
        headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}, target


def test_readme_keeps_the_place_of_its_numbers() -> None:
    assert text_of(README).count("<!-- numbers -->") == 1
