"""The documents: their tables are those of the code, their programs run, and no link leads nowhere."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from lm_eval.models.huggingface import HFLM

import sketch_eval
from sketch_eval import arguments
from sketch_eval.config import CONTROLS, CacheConfig
from sketch_eval.families import FAMILIES
from sketch_eval.grid.grid import Grid
from sketch_eval.leaderboard.row import Row
from sketch_eval.loading import LoadedLM
from sketch_eval.policies import FATES, POLICIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("tasks/*.md"), ROOT / "results" / "README.md"])


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def table(page: str, heading: str) -> list[list[str]]:
    """The entries of the first table below a heading, less its first two lines."""
    below = page[page.index(f"\n{heading}\n") :].splitlines()
    start = next(number for number, line in enumerate(below) if line.startswith("|"))
    lines = []
    for line in below[start + 2 :]:
        if not line.startswith("|"):
            break
        lines.append([entry.strip() for entry in line.strip("|").split(" | ")])
    return lines


def test_the_arguments_of_a_cell_are_all_there_with_their_defaults() -> None:
    described = [(name, default) for name, default, _ in table(read("arguments.md"), "## The cell")]
    assert described == [(f"`{name}`", f"`{field.default}`") for name, field in CacheConfig.model_fields.items()]


def test_what_is_said_of_the_smallest_caps_and_of_budgets_is_so() -> None:
    cap, scope = (
        entries[2]
        for entries in table(read("arguments.md"), "## The cell")
        if entries[0] in ("`max_cache_size`", "`scope`")
    )
    assert "13 is the smallest cap that is accepted and 17 the smallest" in cap
    with pytest.raises(sketch_eval.UsageError):
        CacheConfig.parse(max_cache_size=12)
    assert [CacheConfig.parse(max_cache_size=size).ranks for size in (13, 14, 15, 16, 17)] == [False] * 4 + [True]
    able = [name for name, policy in POLICIES.items() if "budget" in policy.scopes]
    assert sorted(re.findall(r"`(\w+)`", scope.partition("`importance` of")[2])) == sorted(able)


def test_the_arguments_of_the_models_are_lm_evals_with_their_defaults() -> None:
    page = read("arguments.md")
    parameters = dict(inspect.signature(HFLM.__init__).parameters)
    parameters |= {name: p for name, p in inspect.signature(LoadedLM.__init__).parameters.items() if name in parameters}
    expected = {
        f"`{name}`": f"`{p.default}`" for name, p in parameters.items() if name not in ("self", "kwargs", "arguments")
    }
    described = {name: default for name, default, _ in table(page, "## The model")}
    assert list(described) == list(expected)
    apart = {"`pretrained`": "`gpt2`, or none for `sketch_hf`", "`subfolder`": "empty"}
    assert described == expected | apart
    for name in arguments._LOADING_ARGUMENTS:
        assert f"`{name}`" in page


def test_the_controls_are_those_of_the_code() -> None:
    described = {name: told.strip("`") for name, told, _ in table(read("arguments.md"), "## Controls")}
    cells = {name: dict(pair.split("=") for pair in told.split(",")) for name, told in described.items()}
    assert list(cells) == [f"`{name}`" for name in CONTROLS]
    for name, changes in CONTROLS.items():
        assert CacheConfig.parse(**cells[f"`{name}`"]) == CacheConfig.parse(**changes)


def test_the_families_are_those_of_the_code() -> None:
    (listed,) = re.findall(r"that transformers calls (.*?)\n\n", read("arguments.md"), re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == list(FAMILIES)
    assert len(FAMILIES) == 14  # The README says "fourteen families".


def test_every_policy_and_fate_has_a_paragraph_and_a_formula() -> None:
    sections = re.split(r"^### `(\w+)`\n", read("policies.md"), flags=re.MULTILINE)
    titles, bodies = sections[1::2], sections[2::2]
    assert titles == [*POLICIES, *FATES]
    for title, body in zip(titles, bodies, strict=True):
        body = body.partition("\n#")[0]
        assert len(body.split("\n\n")[1 if body.startswith("\n\n") else 0].split()) > 10, title
        assert title == "topk" or re.search(r"^    \S.*[=←]|^    K\(v\) is", body, re.MULTILINE), title


def test_the_grids_keys_and_the_shipped_grids_are_those_of_the_code() -> None:
    page = read("sweeps.md")
    described = {name.strip("`"): default for name, default, _ in table(page, "## What a grid says")}
    assert list(described) == list(Grid.model_fields)
    for name, field in Grid.model_fields.items():
        required, none = field.is_required(), field.default is None
        assert (described[name] == "required", described[name] == "`None`") == (required, none and not required), name
    shipped = [
        name for names, _ in table(page, "## The grids that are shipped") for name in re.findall(r"`(\S+)`", names)
    ]
    there = [path.stem for path in (ROOT / "configs").glob("*.yaml") if not path.name.startswith("lm_eval")]
    assert sorted(shipped) == sorted(there)


def test_the_example_of_a_grid_is_one() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", read("sweeps.md"), re.DOTALL)
    grid = Grid.model_validate(yaml.safe_load(example))
    assert [len(block.cells({})) for block in grid.cells] == [4, 8]


def test_the_columns_of_a_table_are_explained_one_and_all() -> None:
    named = [
        name
        for entry, _ in table(read("reading.md"), "## The columns of `leaderboard.csv`")
        for name in re.findall(r"`(\w+)`", entry)
    ]
    assert sorted(named) == sorted(field.name for field in fields(Row))


def test_every_task_is_named() -> None:
    pages = read("tasks.md") + "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tasks/*.md"))
    for path in (ROOT / "tasks").rglob("*.yaml"):
        for name in re.findall(r"^(?:task|group): ([\w-]+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            stem = re.sub(r"(_depth)?_\d+$", "", name)
            assert f"`{name}`" in pages or f"`{stem}`" in pages or f"`sketch_{stem}`" in pages, name


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", read("python.md"), re.DOTALL))
def test_the_programs_run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_arguments_in_every_command_make_a_cell() -> None:
    commands = [
        command for page in PAGES for command in re.findall(r"--model_args (\S+)", page.read_text(encoding="utf-8"))
    ]
    assert len(commands) > 10
    for command in commands:
        given = dict(pair.split("=", 1) for pair in command.strip("`").split(","))
        CacheConfig.parse(**{name: value for name, value in given.items() if name in CacheConfig.model_fields})
        assert set(given) <= {*CacheConfig.model_fields, *inspect.signature(HFLM.__init__).parameters}


def test_the_sections_that_docstrings_cite_are_there() -> None:
    sections = set(re.findall(r"^## (\d+)\.", read("design.md"), re.MULTILINE))
    cited = {
        number
        for folder in ("sketch_eval", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for line in re.findall(r"docs/design\.md ((?:§\d(?:, )?)+)", path.read_text(encoding="utf-8"))
        for number in re.findall(r"\d", line)
    }
    assert cited == sections


def test_the_version_stands_first_in_the_changes() -> None:
    assert (
        re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
        == sketch_eval.__version__
    )


@pytest.mark.parametrize(
    ("link", "builds"), [("docs/page.md#here", True), ("docs/page.md#there", False), ("gone.md", False)]
)
def test_a_link_that_leads_nowhere_ends_the_build(link: str, builds: bool, tmp_path: Path) -> None:
    """With the hook and the checks of the real site, which `make docs` builds."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    settings |= {"hooks": [str(ROOT / "docs" / "tools" / "mkdocs_hook.py")], "plugins": [], "theme": "mkdocs"}
    settings |= {"nav": ["README.md", "docs/page.md"], "markdown_extensions": ["tables"]}
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (tmp_path / "README.md").write_text(f"# Front\n\n[a link]({link})\n", encoding="utf-8")
    (tmp_path / "docs" / "page.md").write_text("# Here\n\n[back](../README.md)\n", encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == builds, done.stderr
    assert builds or link.rpartition("#")[2] in done.stderr
