"""The package as it is installed: what the wheel holds, what the shim does to lm-eval, and what an uninstall leaves.

The installs go into small environments of their own. Those see the packages of the environment that runs the tests
through a folder of links that leaves out whatever belongs to sketch_eval, and an lm-eval whose code is the installed
one but which has one task, for scanning all of its tasks takes ten seconds.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from sketch_eval import __version__

ROOT = Path(__file__).resolve().parents[1]
STARTUP = ROOT / "sketch_eval" / "startup"
OWN_TASKS = {
    name
    for path in (ROOT / "tasks").rglob("*.yaml")
    for name in re.findall(r"^task:\s*([\w-]+)\s*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
}

ALIAS_QUERY = (
    "import lm_eval.models; from lm_eval.api.registry import model_registry;"
    "print(*map(dict(model_registry.items()).get, ('sketch_gpt2', 'sketch_hf')), 'hf' in model_registry)"
)
ALIAS_KNOWN = "sketch_eval.lm:SketchGPT2 sketch_eval.lm:SketchHF True\n"
ALIAS_UNKNOWN = "None None True\n"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def write_tasks(folder: Path, *names: str) -> None:
    """Write task files that lm-eval lists; nothing runs them."""
    for name in names:
        text = f"task: {name}\ndataset_path: none\noutput_type: loglikelihood\n"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


class Environment:
    """A virtual environment with a few-task lm-eval and everything else that the current one has, less sketch_eval."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False)
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        self.site = Path(
            run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
        )
        links = folder / "links" / "site-packages"  # By its name dill knows that modules are not to be pickled.
        links.parent.mkdir()
        packages = Path(sysconfig.get_path("purelib"))
        self._link(packages, links, but="lm_eval")
        self._link(packages / "lm_eval", links / "lm_eval", but="tasks")
        self._link(packages / "lm_eval" / "tasks", links / "lm_eval" / "tasks", only="*.py")
        write_tasks(links / "lm_eval" / "tasks", "host_task")
        (self.site / "links.pth").write_text(f"{links}\n", encoding="utf-8")

    @staticmethod
    def _link(source: Path, target: Path, only: str = "*", but: str = "") -> None:
        target.mkdir()
        for entry in source.glob(only):
            if entry.name != but and "sketch_eval" not in entry.name and entry.suffix != ".pth":
                (target / entry.name).symlink_to(entry)

    def pip(self, *arguments: str | Path) -> None:
        """Run pip without an index."""
        run(self.python, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=self.folder)

    def install(self, *what: str | Path) -> None:
        """Install the package alone: its dependencies are the linked ones."""
        self.pip("install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", *what)

    def code(self, source: str) -> str:
        """Return what a Python program prints; it must warn of nothing."""
        return run(self.python, "-W", "error::UserWarning", "-c", source, cwd=self.folder).stdout

    def listed(self) -> set[str]:
        """Return the names in the tables of `python -m lm_eval ls tasks`."""
        table = run(self.python, "-m", "lm_eval", "ls", "tasks", cwd=self.folder).stdout
        return set(re.findall(r"^\|(\w[\w-]*)\s*\|", table, flags=re.MULTILINE)) - {"Group", "Tag", "Task"}

    def leftovers(self) -> list[str]:
        """Return the names in site-packages that belong to this package."""
        return sorted(entry.name for entry in self.site.rglob("*") if "sketch_eval" in entry.name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        ROOT,
        cwd=folder,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("installed"))
    environment.install(wheel)
    return environment


def test_wheel_holds_package_tasks_configs_and_the_shim_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    shim = {"sketch_eval_lm_eval.pth", "_sketch_eval_lm_eval.py"}
    assert shim <= names
    assert not any(name.startswith("sketch_eval/startup") for name in names)
    assert {name.split("/")[0] for name in names} - shim == {"sketch_eval", f"sketch_eval-{__version__}.dist-info"}
    for folder in ("tasks", "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"sketch_eval/{path.relative_to(ROOT)}" in names
    for path in (ROOT / "sketch_eval" / "bundled").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert f"sketch_eval-{__version__}.dist-info/licenses/LICENSE" in names  # sketch_eval/centres.py reads it.
    assert "[lm_eval.models]\nsketch_gpt2 = sketch_eval.lm:SketchGPT2" in entry_points


def test_wheel_registers_the_alias_and_lists_the_tasks(installed: Environment) -> None:
    assert installed.code(ALIAS_QUERY) == ALIAS_KNOWN
    assert {"host_task"} | OWN_TASKS <= installed.listed()
    assert (installed.site / "sketch_eval" / "tasks").is_dir() == bool(OWN_TASKS)


def test_validate_and_get_model_find_what_was_installed(installed: Environment) -> None:
    result = run(installed.python, "-m", "lm_eval", "validate", "--tasks", ",".join(OWN_TASKS), cwd=installed.folder)
    assert "All tasks found and valid" in result.stdout
    unknown = installed.code(
        "from lm_eval.api.registry import get_model\ntry: get_model('no_such_model')\nexcept ValueError as e: print(e)"
    )
    assert "sketch_gpt2" in unknown


def test_lm_eval_scores_with_what_was_installed(installed: Environment) -> None:
    """A bounded cell of the bundled model on a task of this package's, far from the repository."""
    cell = "pretrained=bundled,max_cache_size=64"
    command = ["-m", "lm_eval", "run", "--model", "sketch_gpt2", "--model_args", cell, "--tasks", "recall_depth_75"]
    folder = installed.folder / "out"
    run(installed.python, *command, "--limit", "1", "--device", "cpu", "--output_path", folder, cwd=installed.folder)
    (path,) = folder.rglob("results_*.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    said = result["config"]["sketch_eval"]
    assert 0 <= result["results"]["recall_depth_75"]["acc,none"] <= 1
    assert (said["cell"]["max_cache_size"], said["counts"]["binding_requests"] > 0) == (64, True)
    assert said["versions"]["sketch-eval"] == __version__


def test_include_path_and_include_defaults_keep_their_meaning(installed: Environment, tmp_path: Path) -> None:
    write_tasks(tmp_path, "user_task")
    printed = installed.code(
        "import json; from lm_eval.tasks import TaskManager\n"
        f"user = {str(tmp_path)!r}\n"
        "for arguments in [{}, {'include_path': user}, {'include_path': [user]}, {'include_defaults': False},\n"
        "                  {'include_path': user, 'include_defaults': False}]:\n"
        "    manager = TaskManager(**arguments)\n"
        "    print(json.dumps([manager.all_tasks, manager.include_path]))\n"
        "print(json.dumps(TaskManager(None, user, False).all_tasks))\n"
    )
    default, path, paths, nothing, only, positional = [json.loads(line) for line in printed.splitlines()]
    assert {"host_task"} | OWN_TASKS <= set(default[0])
    assert "user_task" not in default[0]
    assert set(path[0]) == set(paths[0]) == {"user_task", *default[0]}
    assert [default[1], path[1], paths[1]] == [None, str(tmp_path), [str(tmp_path)]]
    assert nothing == [[], None]
    assert only == [["user_task"], str(tmp_path)]
    assert positional == ["user_task"]


def test_a_users_task_of_the_same_name_wins(installed: Environment, tmp_path: Path) -> None:
    write_tasks(tmp_path, *OWN_TASKS)
    printed = installed.code(
        "from lm_eval.tasks import TaskManager\n"
        f"index = TaskManager(include_path={str(tmp_path)!r}).task_index\n"
        f"print({{str(index[name].yaml_path.parent) for name in {sorted(OWN_TASKS)!r}}})"
    )
    assert printed == f"{ {str(tmp_path)} if OWN_TASKS else set() }\n"


def test_start_up_imports_next_to_nothing(installed: Environment) -> None:
    """Every Python process of the environment pays for it, so what it costs is held by what it imports."""
    report = run(installed.python, "-X", "importtime", "-c", "pass", cwd=installed.folder).stderr
    names = [line.split("|")[-1][1:] for line in report.splitlines()]  # Indented by two a level, the innermost first.
    (place,) = [place for place, name in enumerate(names) if name.strip() == "_sketch_eval_lm_eval"]
    depth = len(names[place]) - len(names[place].lstrip())
    inner = itertools.takewhile(lambda name: name[: depth + 1].isspace(), reversed(names[:place]))
    assert {name.strip() for name in inner} == {"__future__"}


def test_uninstall_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(wheel)
    assert environment.leftovers()
    environment.pip("uninstall", "--quiet", "--yes", "sketch_eval")
    assert environment.leftovers() == []
    assert environment.code(ALIAS_QUERY) == ALIAS_UNKNOWN
    assert environment.listed() == {"host_task"}


def test_editable_install_and_uninstall(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install("--editable", ROOT)
    assert environment.code(ALIAS_QUERY) == ALIAS_KNOWN
    assert {"host_task"} | OWN_TASKS <= environment.listed()
    assert not (environment.site / "sketch_eval").exists()
    found = environment.code("import _sketch_eval_lm_eval; print(_sketch_eval_lm_eval.tasks_folder())")
    assert found == f"{ROOT / 'tasks'}\n"
    environment.pip("uninstall", "--quiet", "--yes", "sketch_eval")
    assert environment.leftovers() == []
    assert environment.code(ALIAS_QUERY) == ALIAS_UNKNOWN


REGISTRY = """
class Registry(dict):
    def register(self, alias, target): self[alias] = target
model_registry = Registry()
"""
MANAGER = """
class TaskManager:
    def __init__(self, include_path=None, include_defaults=True): self.include_path = self.scanned = include_path
"""


def stand_in(folder: Path, models: str = "", registry: str = REGISTRY, manager: str = MANAGER) -> Path:
    """Write a package of lm-eval's shape: what a later, or an unknown, lm-eval might be."""
    for module, text in {
        "models": models,
        "api": "",
        "api.registry": registry,
        "tasks": "",
        "tasks.manager": manager,
    }.items():
        path = folder / "lm_eval" / module.replace(".", "/")
        path = path.with_suffix(".py") if "." in module else path / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def bare(source: str, *folders: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program without site-packages, with the given folders read as site-packages are."""
    prelude = "import site\n" + "".join(f"site.addsitedir({str(folder)!r})\n" for folder in folders)
    return run(sys.executable, "-I", "-S", "-B", "-c", prelude + source, cwd=cwd)


def test_an_alias_that_lm_eval_knows_is_left_alone(tmp_path: Path) -> None:
    models = (
        "from lm_eval.api.registry import model_registry\nmodel_registry.register('sketch_gpt2', 'their entry point')"
    )
    query = (
        "import lm_eval.models\nfrom lm_eval.api.registry import model_registry\nprint(model_registry['sketch_gpt2'])"
    )
    result = bare(query, STARTUP, stand_in(tmp_path, models=models), cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("their entry point\n", "")


def test_hooked_modules_keep_their_loader_and_reload(tmp_path: Path) -> None:
    query = (
        "import importlib, inspect, lm_eval.models, lm_eval.tasks.manager as manager\n"
        "importlib.reload(lm_eval.models); importlib.reload(manager)\n"
        "print(type(lm_eval.models.__loader__).__name__, inspect.signature(manager.TaskManager))\n"
        "print(inspect.getsource(manager).strip().splitlines()[0])"
    )
    result = bare(query, STARTUP, stand_in(tmp_path), cwd=tmp_path)
    assert (result.stdout, result.stderr) == (
        "SourceFileLoader (include_path=None, include_defaults=True)\nclass TaskManager:\n",
        "",
    )


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("lm_eval.models", {"registry": "another_registry = {}"}),
        ("lm_eval.tasks.manager", {"manager": "class TaskManager:\n    def __init__(self, roots=()): pass"}),
        ("lm_eval.tasks.manager", {"manager": "class Tasks: pass"}),
    ],
)
def test_an_lm_eval_that_changed_still_imports_and_says_what_is_lost(
    tmp_path: Path, module: str, changed: dict[str, str]
) -> None:
    result = bare(f"import {module}; print('imported')", STARTUP, stand_in(tmp_path, **changed), cwd=tmp_path)
    assert result.stdout == "imported\n"
    assert f"sketch_eval could not hook into {module}: " in result.stderr


def test_other_finders_are_asked_and_old_ones_passed_over(tmp_path: Path) -> None:
    query = (
        "import sys\nOld = type('Old', (), {'find_module': lambda *_: None})\nsys.meta_path.insert(1, Old())\n"
        "import lm_eval.models\nfrom lm_eval.api.registry import model_registry\nprint(model_registry['sketch_gpt2'])"
    )
    result = bare(query, STARTUP, stand_in(tmp_path), cwd=tmp_path)
    assert result.stdout == "sketch_eval.lm:SketchGPT2\n"


def test_an_error_inside_lm_eval_stays_its_own(tmp_path: Path) -> None:
    query = "try: import lm_eval.models\nexcept RuntimeError as error: print(error)"
    result = bare(query, STARTUP, stand_in(tmp_path, models="raise RuntimeError('theirs')"), cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("theirs\n", "")


def test_without_sketch_eval_the_task_manager_works(tmp_path: Path) -> None:
    query = (
        "from lm_eval.tasks.manager import TaskManager\nprint(TaskManager('user').scanned, TaskManager().include_path)"
    )
    result = bare(query, STARTUP, stand_in(tmp_path), cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("user None\n", "")


def test_without_lm_eval_the_import_fails_as_ever(tmp_path: Path) -> None:
    result = bare("try: import lm_eval\nexcept ModuleNotFoundError as error: print(error)", STARTUP, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("No module named 'lm_eval'\n", "")


def test_a_pth_left_without_its_module_is_silent(tmp_path: Path) -> None:
    (tmp_path / "sketch_eval_lm_eval.pth").write_bytes((STARTUP / "sketch_eval_lm_eval.pth").read_bytes())
    result = bare("print('started')", tmp_path, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("started\n", "")


def test_the_shim_imports_nothing_of_weight(tmp_path: Path) -> None:
    query = (
        f"import sys\nsys.path.append({str(STARTUP)!r})\nbefore = set(sys.modules)\n"
        "import _sketch_eval_lm_eval\nprint(sorted(set(sys.modules) - before))"
    )
    assert bare(query, cwd=tmp_path).stdout == "['__future__', '_sketch_eval_lm_eval']\n"
