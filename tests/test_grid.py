"""Grids: which cells there are, which are one computation, what they will cost, and what is no grid."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from sketch_eval.attention import foresee
from sketch_eval.cache import SketchCache
from sketch_eval.commands import cli
from sketch_eval.config import CacheConfig
from sketch_eval.errors import UsageError
from sketch_eval.evaluate.tasks import _index, choose_metrics
from sketch_eval.grid.cells import cell_name, computation, depends_on
from sketch_eval.grid.grid import Grid, Model, Task, read
from sketch_eval.leaderboard.runs import Sweep
from sketch_eval.policies import POLICIES
from sketch_eval.sweep.plan import estimate, plan
from sketch_eval.sweep.run import Here, computations


def test_the_reference_grid_has_144_cells_of_132_computations_beside_the_ladder() -> None:
    grid = read("seed-144")
    cells = grid.expand()
    sketches = [cell for cell in cells if cell.importance == "count_min"]
    assert len(sketches) == 144
    assert len(cells) == 144 + 3 * 7 + 3 * 4
    # topk 64 and 128 hide nothing at a cap of 64, nor does 128 at 128: 3, 4 and 4 ways of 12 sketches.
    assert len({computation(cell) for cell in sketches}) == 12 * (3 + 4 + 4)
    # Beside them the ladder, exact scores with each way to bound that differs from the ladder's, and the full cache.
    assert len(computations(grid)) == 132 + 3 * 7 + (2 + 3 + 4) + 1
    plain = read("seed-144-plain").expand()
    assert [cell.model_copy(update={"decay": 1.0}) for cell in sketches] == [
        cell for cell in plain if cell.importance == "count_min"
    ]


@pytest.mark.parametrize(
    "shipped", sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"))
)
def test_shipped_grids_can_be_read(shipped: str) -> None:
    if not shipped.startswith("lm_eval"):
        assert len(read(shipped).expand()) > 1


FIELDS = {
    "width": st.sampled_from([8, 16]),
    "depth": st.sampled_from([1, 3]),
    "item": st.sampled_from(["position", "token", "key"]),
    "decay": st.sampled_from([0.8, 1.0]),
    "seed": st.sampled_from([0, 5]),
    "topk": st.sampled_from([None, 3, 8, 9]),
}
WAYS = [{}, {"strategy": "aggregate"}, {"normalize": "age"}, {"strategy": "aggregate", "normalize": "age"}]
CELLS = st.sampled_from(list(POLICIES)).flatmap(
    lambda importance: st.builds(
        CacheConfig,
        importance=st.just(importance),
        scope=st.just(POLICIES[importance].scopes[0]),
        max_cache_size=st.just(8),
        sinks=st.just(1),
        **FIELDS | ({} if POLICIES[importance].scopes[0] in ("layer", "head") else {"topk": st.none()}),
    )
)


@pytest.mark.usefixtures("loop")
def test_cells_of_one_computation_compute_the_same() -> None:
    """Whatever `computation` drops may be anything: the logits are the same, bit for bit."""

    @given(cell=CELLS, others=st.fixed_dictionaries(FIELDS), way=st.sampled_from(WAYS), data=st.data())
    @settings(max_examples=60)
    def alike(cell: CacheConfig, others: dict[str, Any], way: dict[str, Any], data: st.DataObject) -> None:
        if "strategy" in way or cell.shared_out:
            way, others = way | {"topk": None}, others | {"topk": None}
        cell = cell.model_copy(update=way)
        if not (cell.topk is None or cell.topk >= 8):
            others["topk"] = cell.topk
        elif others["topk"] == 3:
            others["topk"] = None
        unread = {field: value for field, value in others.items() if field == "topk" or not depends_on(cell, field)}
        twin = cell.model_copy(update=unread)
        assert computation(twin) == computation(cell)
        model = tiny_gpt2(seed=1)
        ids = torch.randint(1, 61, (2, 24), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
        seen = foresee(model, ids, cell.foresees) if cell.foresees else None
        with torch.no_grad():
            caches = (SketchCache(model.config, each, foresight=seen) for each in (cell, twin))
            one, other = (model(ids, past_key_values=cache).logits for cache in caches)
        assert torch.equal(one, other)

    alike()


def test_the_full_cache_is_one_cell_however_often_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(
        "tasks: [wikitext]\ndefaults: {width: 8}\nseeds: [3]\ncells: [{controls: [full, window], max_cache_size: 8}]"
    )
    grid = read(str(tmp_path / "g.yaml"))
    assert [cell_name(cell) for cell in grid.expand()] == ["window"]
    assert [cell_name(cell) for cell in computations(grid)] == ["full", "window"]


def test_names_tell_cells_apart() -> None:
    cells = [cell for config in ("seed-144", "ablation", "rivals", "scope") for cell in read(config).expand()]
    seen: dict[tuple[int | None, str], CacheConfig] = {}
    for cell in (cell.model_copy(update={"seed": 0}) for cell in cells):
        twin = seen.setdefault((cell.max_cache_size, cell_name(cell)), cell)
        assert computation(twin) == computation(cell), cell_name(cell)
    assert cell_name(CacheConfig.parse(importance="exact", decay=1.0, scope="head")) == "h2o"
    assert cell_name(CacheConfig.parse(importance="exact", decay=1.0)) == "h2o scope=layer"
    assert cell_name(CacheConfig.parse(importance="exact", scope="head")) == "exact scope=head"
    assert cell_name(CacheConfig.parse(importance="recency", sinks=0, strategy="aggregate")) == "window aggregate"
    assert (
        cell_name(CacheConfig.parse(width=128, depth=2, topk=32, item="token")) == "count_min 128×2 topk32 item=token"
    )


def test_the_plan_tells_computations_bytes_and_time(grid: Grid, crew: Here, finished: Path) -> None:
    lines = plan(grid)
    assert all(line.seconds is None for line in lines)
    estimate(lines, crew._worker)
    assert [line.kind for line in lines] == ["full", *["control"] * 2, *["sketch"] * 4, "control"]
    assert [line.runs for line in lines] == [1, 1, 1, 2, 2, 0, 2, 1]
    assert lines[5].same_as == 4
    rows = {(row.cell, row.cap): row for row in Sweep(finished).rows()}
    for line in lines[1:]:
        assert line.bytes is not None
        assert line.cap is not None
        assert line.bytes["steady_bytes"] == rows[line.name, float(line.cap)].total_bytes
    assert lines[5].seconds == 0 < (lines[4].seconds or 0.0)


@lru_cache(maxsize=1)
def _bundled_manager() -> TaskManager:
    return TaskManager(metadata={"pretrained": "bundled"})


def _manager(**_: Any) -> TaskManager:
    """lm-eval's index of tasks, which takes seconds to make, once for all bad grids."""
    return _bundled_manager()


def _no_model(**_: Any) -> None:
    raise AssertionError("a model was asked for")


CELL = "cells: [{max_cache_size: 64}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [wikitext]\ncell: []", "cell is not a key (did you mean cells?)"),
        ("tasks: {kv_256: {limits: 3}}\n" + CELL, "tasks.kv_256.limits is not a key (did you mean limit?)"),
        (
            "model: {pretraned: gpt2}\ntasks: [kv_256]\n" + CELL,
            "model.pretraned is not a key (did you mean pretrained?)",
        ),
        (
            "tasks: [kv_256]\ncells: [{max_cash_size: 64}]",
            "max_cash_size is not a field of a cell (did you mean max_cache_size?)",
        ),
        ("tasks: [kv_256]\ncells: []", "cells: give at least one"),
        ("tasks: {}\n" + CELL, "tasks: give at least one"),
        ("tasks: [kv_256]\nreference: {decay: 2}\n" + CELL, "cells: decay=2: should be less than or equal to 1"),
        ("tasks: [kv_256]\nreference: {seed: 2}\n" + CELL, "seed goes in the grid's own key"),
        (
            "tasks: [kv_256]\ntwin: {scope: row}\n" + CELL,
            "cells: scope='row': should be 'layer', 'head', 'budget' or 'entropy'",
        ),
        ("tasks: [kv_256]\ntwin: {scope: head}\nreference: {}\n" + CELL, "reference and twin both say what cells"),
        ("tasks: [kv_256]\ncells: [{width: []}]", "width has no values"),
        ("tasks: [kv_256]\ncells: [{controls: [windows]}]", "windows is no control (did you mean window?)"),
        ("tasks: [kv_256]\ncells: [{max_cache_size: [64, 0]}]", "max_cache_size=0: should be greater than"),
        ("tasks: [kv_256]\ncells: [{variants: [{strategy: topl}]}]", "strategy='topl'"),
        ("tasks: [kv_256]\nseeds: [1, 1]\n" + CELL, "each seed once"),
        ("tasks: [kv_256\n", "cannot be read as YAML"),
        ("- 1", "expected a mapping with tasks and cells"),
        ("tasks: [kv_256]\n" + CELL + "\n" + CELL, "cells is there twice"),
        ("tasks: [{kv_256: {limit: 3}}]\n" + CELL, "options go in a mapping"),
        ("tasks: [kv_256]\ncells: [{variants: []}]", "cells.0.variants: give at least one"),
        ("tasks: [kv_256]\ncells: {width: 2}", "cells={'width': 2}: should be a list"),
        ("tasks: [kv_256]\ncells: [{seed: [0, 1]}]", "seed goes in the grid's own key, such as `seeds: [0, 1]`"),
        ("tasks: [kv_256]\ndefaults: {seed: 1}\n" + CELL, "seed goes in the grid's own key"),
        ("tasks: [kv_256]\nmodel: {dtype: floaty}\n" + CELL, "model.dtype='floaty': should be 'float32'"),
        (
            "tasks: {kv_256: {}, sketch_quick: {}, kv_512: {}}\nmodel: {pretrained: bundled}\n" + CELL,
            "kv_512 is asked for twice, the second time in kv_512",
        ),
        (
            "tasks: {kv_256: {num_fewshot: 2, limit: 1}}\nmodel: {pretrained: bundled}\n" + CELL,
            "tasks.kv_256.num_fewshot=2: the task itself says 0; leave it out",
        ),
        (
            "tasks: [kv_265]\nmodel: {pretrained: bundled}\n" + CELL,
            "kv_265 is no task of lm-eval's or of sketch_eval's (did you mean kv_256?); for one of your own, give the "
            "grid `include_path: FOLDER`",
        ),
        (
            "tasks: [kv_256]\nmodel: {pretrained: bundled, device: 'cuda:99'}\n" + CELL,
            "model.device='cuda:99': torch cannot use it here (",
        ),
        (
            "tasks: {kv_256: {metrics: [accuracy]}}\nmodel: {pretrained: bundled}\n" + CELL,
            "tasks.kv_256.metrics: accuracy is no metric of it that a table can show",
        ),
    ],
)
def test_bad_grids_are_one_line_before_a_model_is_loaded(
    tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sketch_eval.evaluate.work.SweepLM", _no_model)
    monkeypatch.setattr("sketch_eval.evaluate.tasks.TaskManager", _manager)
    (tmp_path / "bad.yaml").write_text(text)
    run = CliRunner().invoke(cli.app, ["sweep", str(tmp_path / "bad.yaml"), "--output", str(tmp_path / "out")])
    assert isinstance(run.exception, UsageError), run.output
    assert message in str(run.exception)
    assert "\n" not in str(run.exception)


def test_lm_evals_own_tasks_are_indexed_only_where_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group may name tasks of lm-eval's, and a user's may take the place of a task in one of this package's."""
    (tmp_path / "ours.yaml").write_text("group: ours\ntask: [wikitext, kv_256]")
    (tmp_path / "own.yaml").write_text("group: own\ntask: [mine, kv_256]")
    (tmp_path / "endless.yaml").write_text("group: endless\ntask: [endless]")
    (tmp_path / "drift.yaml").write_text("group: drift\ntask: [wikitext]")
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json")
    asked: list[bool] = []

    def manager(include_defaults: bool = True, **settings: Any) -> Any:
        asked.append(include_defaults)
        return TaskManager(include_defaults=False, **settings)

    monkeypatch.setattr("sketch_eval.evaluate.tasks.TaskManager", manager)
    for names, everything in [
        (["kv_256", "recall", "mine", "own"], False),
        (["kv_256", "ours"], True),
        (["sketch_fewshot"], True),
        (["sketch_quick"], True),  # Of which drift is now the user's.
        (["endless"], True),
        (["wikitext"], True),
    ]:
        asked.clear()
        tasks = {name: Task() for name in names}
        index = _index(Grid.model_construct(tasks=tasks, metadata={}, include_path=str(tmp_path), model=Model()))
        assert asked == [False, True][: 1 + everything]
        assert everything or set(names) <= set(index.all_tasks)


def test_a_task_without_a_metric_for_the_table_is_refused() -> None:
    task = SimpleNamespace(aggregation=lambda: {"mcc": lambda values: 0.0})
    with pytest.raises(
        UsageError, match="odd has no metric for the tables: mcc; a table can show means and perplexities"
    ):
        choose_metrics("odd", task, Task())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "no-such"], "no such file; give a path, or one of"),
        (["sweep", "dmeo"], "config='dmeo' (did you mean demo?)"),
        (["plan", "demo.yml"], "config='demo.yml' (did you mean demo?)"),
        (["sweep", "demo", "--on", "spark"], "on='spark': expected here or ray"),
        (["sweep", "demo", "--address", "x:1"], "address='x:1' goes with --on ray"),
        (["sweep", "demo", "--gpus", "1"], "gpus=1.0 goes with --on ray"),
        (["leaderboard", "/nowhere"], "holds no sweep; run `sketch-eval sweep` first"),
        (["reproduce", "abc", "--in", "/nowhere"], "no leaderboard.json there"),
    ],
)
def test_bad_commands_are_one_line(arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(cli.app, arguments)
    assert isinstance(run.exception, UsageError), run.output
    assert message in str(run.exception)


def test_a_bad_cell_is_the_only_thing_said_to_be_wrong(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("tasks: [kv_256]\ncells: [{max_cash_size: 64}]")
    with pytest.raises(UsageError) as error:
        read(str(tmp_path / "bad.yaml"))
    assert "give at least one" not in str(error.value)


def test_a_plan_needs_neither_network_nor_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GPT-2 on the hub's tasks: the cells, without bytes where the model's config is not on this machine."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    run = CliRunner().invoke(cli.app, ["plan", "seed-144"])
    assert run.exit_code == 0, run.output
    assert "178 cells are 163 distinct computations" in run.output
    assert "is not on this machine yet" in run.output


@pytest.mark.parametrize("command", [["plan"], ["sweep", "--output", "out"]])
def test_texts_longer_than_the_model_are_refused_before_its_weights_are_loaded(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sketch_eval.evaluate.tasks.TaskManager", _manager)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", _no_model)
    (tmp_path / "g.yaml").write_text("model: {pretrained: bundled, max_length: 4096}\ntasks: [kv_256]\n" + CELL)
    run = CliRunner().invoke(cli.app, [*command, "g.yaml"])
    assert "max_length=4096: the model has 1024 positions; give 1 to 1024, or leave it out" in str(run.exception)


def test_a_grid_of_ones_own_goes_to_runs_and_says_which_caps_leave_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("tasks: [kv_256]\ncells: [{max_cache_size: [16, 64], depth: [2, 4]}]")
    monkeypatch.chdir(tmp_path)
    places: list[Path] = []

    def stop(grid: Grid, folder: Path, *_: Any) -> None:
        places.append(folder)
        raise UsageError("enough")

    monkeypatch.setattr("sketch_eval.sweep.run.sweep", stop)
    run = CliRunner().invoke(cli.app, ["sweep", "mine.yaml"])
    assert places == [Path("runs/mine")]
    assert run.output.count("has no choice; lower recent or raise max_cache_size") == 1
    assert "max_cache_size=16: sinks=4 and recent=0.75 protect all but" in run.output
