"""Make a plain `lm_eval` find the models `sketch_hf` and `sketch_gpt2`, and this package's tasks.

lm-eval 0.4.13 reads no entry points, and looks a model up by name before any code of ours could run. Its development
branch reads them (EleutherAI/lm-evaluation-harness pull request #4013, group `lm_eval.models`), and this package
declares one. Until a release does, this is the one place where the host is touched: the `.pth` file beside this module
in site-packages imports it whenever Python starts, and it waits for two modules of lm-eval to be imported.

- After `lm_eval.models`, each alias is registered as a lazy string, unless lm-eval knows it already. Not earlier: a
  registry that is imported ahead of `lm_eval.models` by us would leave `hf` unknown.
- After `lm_eval.tasks.manager`, `TaskManager` also scans this package's task folder: after lm-eval's own tasks and
  before `include_path`, so that a user's task of the same name wins, and not at all with `include_defaults=False`.

Every Python process of the environment pays for this module, so it imports only `sys` and `__future__` until
lm-eval is in use.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # what type checkers know from typing, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

TARGETS = {"sketch_hf": "sketch_eval.lm:SketchHF", "sketch_gpt2": "sketch_eval.lm:SketchGPT2"}


def tasks_folder() -> str | None:
    """Return the folder of this package's tasks, or None where the package or the folder is not there.

    The package is located, not imported. A wheel has the tasks at `sketch_eval/tasks`; a source tree (an editable
    install) has them at `tasks`, beside its `pyproject.toml`.
    """
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("sketch_eval")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    tasks = package / "tasks"
    if not tasks.is_dir() and (package.parent / "pyproject.toml").is_file():
        tasks = package.parent / "tasks"
    return str(tasks) if tasks.is_dir() else None


def register_aliases(models: ModuleType) -> None:
    """Register each alias with lm-eval as a lazy string, unless it is known. `models` is `lm_eval.models`."""
    from lm_eval.api.registry import model_registry

    for alias, target in TARGETS.items():
        if alias not in model_registry:
            model_registry.register(alias, target=target)


def add_tasks(manager: ModuleType) -> None:
    """Let `TaskManager` scan this package's tasks with lm-eval's own. `manager` is `lm_eval.tasks.manager`.

    The folder goes ahead of `include_path` while the original `__init__` runs; the attribute then says what the caller
    said.
    """
    from functools import wraps
    from inspect import signature

    original = manager.TaskManager.__init__
    parameters = signature(original)
    missing = {"include_path", "include_defaults"} - parameters.parameters.keys()
    if missing:
        raise TypeError(f"TaskManager takes no {', '.join(sorted(missing))}")

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = parameters.bind(self, *args, **kwargs)
        bound.apply_defaults()
        theirs = bound.arguments["include_path"]
        folder = tasks_folder() if bound.arguments["include_defaults"] else None
        if folder is not None:
            others = theirs if isinstance(theirs, list | tuple) else [theirs] if theirs else []
            bound.arguments["include_path"] = [folder, *others]
        original(*bound.args, **bound.kwargs)
        self.include_path = theirs

    manager.TaskManager.__init__ = init
    if any(alias in argument for argument in sys.argv for alias in TARGETS):
        shorten_task_errors()


TASK_ERRORS = {
    "Tasks not found:": "`lm_eval ls tasks` lists the ones there are",
    "Duplicate task ": "name one of them, or tasks and groups that share none",
}


def shorten_task_errors() -> None:
    """Let a command line that runs this package's model report unknown and doubly named tasks in one line.

    lm-eval ends in a traceback.
    """
    previous = sys.excepthook

    def excepthook(kind: Any, error: BaseException, trace: Any) -> None:
        hints = [hint for start, hint in TASK_ERRORS.items() if kind is ValueError and str(error).startswith(start)]
        if hints:
            print(f"sketch_eval: error: {error}; {hints[0]}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    sys.excepthook = excepthook


class LmEvalFinder:
    """A meta path finder that lets the other finders find, and has a callback run after the modules that have one."""

    def __init__(self, callbacks: dict[str, Callable[[ModuleType], None]]) -> None:
        self.callbacks = callbacks

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the others' spec of a module that has a callback, and None for every other module."""
        callback = self.callbacks.get(fullname)
        if callback is None:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)  # not every old finder has one
            spec = None if find is None or finder is self else find(fullname, path, target)
            if spec is not None:
                _call_after_exec(spec, callback)
                return spec
        return None


def _call_after_exec(spec: ModuleSpec, callback: Callable[[ModuleType], None]) -> None:
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        try:
            callback(module)
        except Exception as error:
            # An lm-eval that has changed loses what we would add to it, and must lose nothing else.
            import warnings

            warnings.warn(f"sketch_eval could not hook into {spec.name}: {error!r}", stacklevel=2)

    # Set on this one loader, not by a loader of our own: the module keeps its true loader for sources and resources.
    loader.exec_module = exec_module


sys.meta_path.insert(0, LmEvalFinder({"lm_eval.models": register_aliases, "lm_eval.tasks.manager": add_tasks}))
