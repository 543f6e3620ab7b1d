"""`sketch-eval verify`: it passes here, and it fails where something is not as it should be."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Literal

import pytest
from typer.testing import CliRunner, Result

from sketch_eval.commands.cli import app
from sketch_eval.commands.verify import executions, published, scores
from sketch_eval.execution import choose, compiled, stepwise

FEW = ("full", "count_min 512×4, cap 64")


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """Some of the known scores, in a file that a test may alter."""
    record = json.loads(scores.KNOWN.read_text())
    record["bits_per_byte"] = {name: record["bits_per_byte"][name] for name in FEW}
    file = tmp_path / "known.json"
    file.write_text(json.dumps(record))
    return file


@pytest.fixture
def untritoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Triton, whose interpreter takes most of the time: for what is not about it."""
    monkeypatch.setattr(executions, "Execution", Literal["auto", "oracle", "stepwise", "compiled"])


def run(known: Path) -> tuple[Result, dict[str, Any]]:
    report = known.parent / "report.json"
    command = ["verify", "--device", "cpu", "--quick", "--cells", "2", "--known", str(known), "--output", str(report)]
    result = CliRunner().invoke(app, command)
    return result, json.loads(report.read_text())


def rows(report: dict[str, Any], verdict: str) -> list[str]:
    return [check["name"] for check in report["checks"] if check["verdict"] == verdict]


@pytest.mark.usefixtures("untritoned")
def test_an_execution_that_breaks_is_a_failed_row_and_not_a_skipped_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr("sketch_eval.execution.stepwise.advance", breaks)
    found = {row.name: row for row in executions.check("cpu", 1)}
    assert found["stepwise on cpu"].verdict == "FAILED"
    assert "a defect" in found["stepwise on cpu"].found


def test_it_passes_here_and_its_report_says_on_what(known: Path) -> None:
    result, report = run(known)
    assert result.exit_code == 0, result.output
    assert "all is as it should be" in result.output
    assert report["passed"]
    followed = [
        name for name in rows(report, "ok") if name != "triton on cpu"
    ]  # Where Triton is there to interpret it.
    assert followed == ["stepwise on cpu", "compiled on cpu", *FEW]
    assert len(rows(report, "measured")) == 5
    assert report["machine"]["cores"] >= 1
    assert {"python", "torch", "lm-eval", "triton"} <= report["versions"].keys()


@pytest.mark.usefixtures("untritoned")
@pytest.mark.parametrize(("name", "factor"), [("full", 1.01), ("count_min 512×4, cap 64", 0.995)])
def test_a_score_that_is_not_the_known_one_fails_by_its_name(known: Path, name: str, factor: float) -> None:
    record = json.loads(known.read_text())
    record["bits_per_byte"][name] *= factor
    known.write_text(json.dumps(record))
    result, report = run(known)
    assert result.exit_code == 1
    assert f"1 FAILED: {name}" in result.output
    assert not report["passed"]
    assert rows(report, "FAILED") == [name]


def test_scores_of_other_weights_are_not_compared_but_measured_anew_where_that_is_asked(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads(known.read_text())
    monkeypatch.setattr(scores, "CELLS", {name: scores.CELLS[name] for name in FEW})
    known.write_text(json.dumps(record | {"weights_sha256": "0" * 64}))
    (check,) = scores.check("cpu", known)
    assert check.verdict == "FAILED"
    assert "--write-known" in check.found
    scores.write_known("cpu", known)
    again = json.loads(known.read_text())
    assert again["weights_sha256"] == record["weights_sha256"]
    assert again["bits_per_byte"] == pytest.approx(record["bits_per_byte"], rel=1e-5)


@pytest.mark.usefixtures("untritoned")
def test_an_execution_that_decides_or_computes_otherwise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(state: Any, call: Any) -> Any:
        output, trace = stepwise.advance(state, call)
        return output * 1.001, trace

    def forgets(state: Any, call: Any) -> Any:
        output, trace = stepwise.advance(state, call)
        trace.victims.fill_(-1)
        return output, trace

    for wrong, said in ((off, "off in the cell max_cache_size=12"), (forgets, "it decided otherwise in the cell")):
        monkeypatch.setattr(compiled, "advance", wrong)
        found = {check.name: check for check in executions.check("cpu", 2)}
        assert found["compiled on cpu"].verdict == "FAILED"
        assert said in found["compiled on cpu"].found
        assert found["stepwise on cpu"].verdict == "ok"


def test_an_execution_that_is_new_in_the_registry_is_looked_at_and_one_that_cannot_be_had_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (choose, executions):
        monkeypatch.setattr(module, "Execution", Literal["auto", "oracle", "tomorrows"])
    (check,) = executions.check("cpu", 1)
    assert (check.name, check.verdict) == ("tomorrows", "skipped")
    assert "is not installed here" in check.found


def test_without_the_hub_the_published_answers_are_skipped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any, timeout: float) -> Any:
        assert timeout <= 5
        raise TimeoutError("timed out")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(socket, "create_connection", silent)
    assert [check.verdict for check in published.check("cpu")] == ["skipped", "skipped"]


def test_random_cells_beyond_the_usual_ones_have_every_policy_that_begins_without_a_text() -> None:
    cells = [executions.random_cell(number) for number in range(400)]
    assert {(cell.importance, cell.strategy) for cell in cells[: executions.USUAL]} == set(executions.PAIRS)
    rankings = {name for name, kind in executions.POLICIES.items() if not kind.foresees}
    assert {cell.importance for cell in cells} == rankings
    assert {cell.scope for cell in cells} == {"layer", "head", "budget", "entropy"}
