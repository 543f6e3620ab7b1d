"""`sketch-eval`: from a grid of cells to a leaderboard, around lm-eval, which runs and scores."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sketch_eval.commands import terminal
from sketch_eval.errors import UsageError

if TYPE_CHECKING:
    from sketch_eval.sweep.run import Report

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)
console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)

Config = Annotated[str, typer.Argument(help="a grid's YAML file, or a shipped one by name: demo, seed-144, rivals …")]
Output = Annotated[Path | None, typer.Option(help="folder of the runs; default: runs/ and the config's name")]
INTERRUPTED = 130  # what Typer makes of Ctrl-C
MOST_CELLS, MOST_TASKS = 40, 6
"""What fits a terminal; a larger leaderboard is better read as a page."""


def main() -> None:
    """The command line: bad input is one line and status 1."""
    # Progress bars and advice of the libraries below give way to one bar of ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except UsageError as error:
        print(f"sketch-eval: error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"sketch-eval: error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("sketch-eval: stopped; what is finished is kept, and the same command goes on there", file=sys.stderr)
        raise


@app.command()
def plan(
    config: Config,
    times: Annotated[
        bool, typer.Option("--time", help="also load tasks and model and measure its speed, to estimate the time")
    ] = False,
) -> None:
    """List the cells of a grid: which are the same computation, and what each costs in bytes and, with --time, in time.

    The cells need no network; the bytes need the model's config on this machine.
    """
    grid = _read(config)
    _quiet()
    from sketch_eval.sweep import plan as planning

    lines = planning.plan(grid)
    kinds = [line.kind for line in lines]
    title = f"{kinds.count('sketch')} sketch cells, {kinds.count('control')} controls and the full cache"
    console.print(terminal.plan_table(title, lines))
    if lines[0].bytes is None:
        console.print(f"No bytes: the config of {grid.model.pretrained!r} is not on this machine yet.")
    _say_choice(grid)
    distinct = sum(line.runs for line in lines)
    entries = f"{len(grid.tasks)} tasks or groups ({', '.join(grid.tasks)})"
    console.print(f"{len(lines)} cells are {distinct} distinct computations, on {entries}.", soft_wrap=True)
    if not times:
        console.print("--time loads the tasks and the model, and estimates how long they take here.")
        return
    from sketch_eval.evaluate.work import Worker

    with console.status("loading the tasks and the model, and measuring its speed"):
        worker = Worker(grid)
        planning.estimate(lines, worker)
    console.print(terminal.times_table(lines))
    console.print(
        f"{distinct * len(worker.tasks)} runs on {len(worker.tasks)} tasks: about "
        f"{terminal.span(sum(line.seconds or 0.0 for line in lines))} here."
    )


@app.command()
def sweep(
    config: Config,
    output: Output = None,
    on: Annotated[str, typer.Option(help="`here`, or `ray`: the workers of a Ray cluster")] = "here",
    address: Annotated[
        str | None, typer.Option(help="a Ray cluster's address; default: one started on this machine")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="with --on ray: CPUs of each worker")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="with --on ray: GPUs of each worker, such as 0.5")] = 0.0,
    wait: Annotated[bool, typer.Option(help="wait while another sweep is at work in the folder")] = False,
) -> None:
    """Run every cell of a grid that is not on disk yet, then write the leaderboard."""
    grid = _read(config)
    folder = Path("runs") / Path(config).stem if output is None else output
    _say_choice(grid)
    recruit = _crew(on, address, cpus, gpus)
    _quiet()
    from sketch_eval.sweep.run import sweep as run

    start = time.perf_counter()
    with terminal.Bar(console) as bar:
        report = run(grid, folder, recruit, bar, wait, f"sketch-eval sweep {config}")
    seconds = time.perf_counter() - start
    _say(report, seconds, on)
    _leaderboard(folder, None)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def leaderboard(
    results: Annotated[Path, typer.Argument(help="a folder that `sketch-eval sweep` wrote")],
    output: Annotated[Path | None, typer.Option(help="folder of the tables; default: the same")] = None,
) -> None:
    """Write leaderboard.md with its pictures, .csv, .json and .html out of the finished runs."""
    _leaderboard(results, output)


@app.command()
def page(
    results: Annotated[Path, typer.Argument(help="a folder with a leaderboard.json, such as results/tasks")],
    output: Annotated[Path | None, typer.Option(help="folder of the page; default: the same")] = None,
    figures: Annotated[bool, typer.Option("--figures", help="also write figures/, every plot as PNG and SVG")] = False,
) -> None:
    """Write leaderboard.html out of a leaderboard's tables, without its runs."""
    from sketch_eval.leaderboard.write import write_page

    console.print(f"page: {write_page(results, output, figures)}", soft_wrap=True, markup=False)


@app.command()
def show(
    results: Annotated[Path, typer.Argument(help="a folder with a leaderboard.json, such as results/tasks")],
    task: Annotated[list[str] | None, typer.Option(help="a task, a group, or a pattern such as 'kv_*'")] = None,
    metric: Annotated[str | None, typer.Option(help="a metric of these tasks; default: what stands for each")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="part of a cell's name, such as aggregate")] = None,
    cap: Annotated[list[str] | None, typer.Option(help="a cap, or all; default: a middle one")] = None,
    sort: Annotated[str | None, typer.Option(help="a shown task, cell, cap or bytes; default: the first task")] = None,
    top: Annotated[int, typer.Option(min=0, help="so many cells; 0 is all")] = 20,
) -> None:
    """Print a table of chosen tasks and cells of a leaderboard, best first. --task, --cell and --cap repeat."""
    from sketch_eval.commands.show import show as chosen

    console.print(chosen(results, task or (), metric, cell or (), cap or (), sort, top))


@app.command()
def diagnose(
    config: Config,
    output: Output = None,
    texts: Annotated[int, typer.Option(min=1, help="texts of each task")] = 4,
) -> None:
    """Say what each bounded cell of a grid loses, layer by layer and head by head, on a few texts of its tasks.

    Attention that fell on pairs no longer held, how far the output is from the full cache's, how well the ranking knows
    what will be wanted, and how old the pairs are that it keeps: diagnosis.md, diagnosis.csv and pictures.
    """
    grid = _read(config)
    folder = Path("runs") / Path(config).stem if output is None else output
    _quiet()
    from sketch_eval.diagnose import diagnose as run

    with terminal.Bar(console) as bar:
        page = run(grid, folder, texts, bar, f"sketch-eval diagnose {config} --texts {texts}")
    console.print(f"diagnosis: {page}", soft_wrap=True, markup=False)


@app.command()
def reproduce(
    row: Annotated[str, typer.Argument(help="a row's name, from the first column of leaderboard.csv")],
    places: Annotated[
        list[Path] | None,
        typer.Option("--in", help="leaderboard.json, or a folder with some; default: runs, then results"),
    ] = None,
) -> None:
    """Run one row again from what it records, and say whether the numbers are equal: status 1 where they are not."""
    _quiet()
    from sketch_eval.commands import reproduce as again
    from sketch_eval.sweep.run import Here

    file, about, entry = again.find(row, places or ())
    cap = "" if entry["cap"] is None else f", cap {entry['cap']:.0f}"
    what = f"{entry['row']} of {file}: {entry['cell']}{cap}, {entry['task']} {entry['metric']}"
    console.print(what, soft_wrap=True, markup=False)
    with terminal.Bar(console) as bar:
        comparison = again.reproduce(entry, about, Here, bar)
    console.print(terminal.comparison_table(comparison))
    for what, (then, now) in comparison.changed.items():
        console.print(f"not as it was: {what} was {then}, is {now}")
    exact = {"equal": ", bit for bit", "close": f" (within {again.CLOSE:g}), but not bit for bit"}
    console.print(comparison.verdict + exact.get(comparison.verdict, ""))
    if comparison.verdict == "different":
        raise typer.Exit(1)


@app.command()
def verify(
    device: Annotated[str | None, typer.Option(help="such as cuda or cpu; default: CUDA where there is one")] = None,
    cells: Annotated[
        int, typer.Option(min=1, help="random cells on which executions are compared; beyond 24, of any policy")
    ] = 24,
    quick: Annotated[bool, typer.Option(help="time small passes only, which say little of large ones")] = False,
    published: Annotated[
        bool, typer.Option(help="also score GPT-2 on WikiText-2 and LAMBADA, where the hub or its cache has them")
    ] = False,
    output: Annotated[Path, typer.Option(help="the file to attach to a report")] = Path("runs/verify.json"),
    known: Annotated[Path | None, typer.Option(help="a file of known scores; default: the package's own")] = None,
    write_known: Annotated[
        bool, typer.Option(help="measure the known scores and write them, after the bundled model was replaced")
    ] = False,
) -> None:
    """Say whether this machine computes what it should, and how fast: status 1 where it does not. About a minute.

    Every execution against the oracle, the bundled model's known scores, and the bounded pass's speed as ratios.
    """
    _quiet()
    from sketch_eval.arguments import find_device
    from sketch_eval.commands import verify as verifying
    from sketch_eval.commands.verify.scores import KNOWN

    place, file = find_device(device), known or KNOWN
    if write_known:
        for name, score in verifying.write_known(place, file).items():
            console.print(f"{name}: {score:.6f} bits a byte")
        console.print(f"known scores: {file}", soft_wrap=True, markup=False)
        return
    report = verifying.Report(place)
    with console.status("beginning") as status:
        for report in verifying.verify(place, cells, quick, published, file):
            status.update(f"{report.checks[-1].name}: {report.checks[-1].verdict}")
    report.write(output)
    console.print(terminal.report_table(report))
    failed = [check.name for check in report.checks if check.verdict == "FAILED"]
    verdict = f"{len(failed)} FAILED: {'; '.join(failed)}" if failed else "all is as it should be"
    console.print(f"{verdict}, in {terminal.span(report.seconds)} on {place}", soft_wrap=True, markup=False)
    console.print(f"report: {output}", soft_wrap=True, markup=False)
    if failed:
        raise typer.Exit(1)


def _read(config: str) -> Any:
    from sketch_eval.grid.grid import read

    return read(config)


def _say_choice(grid: Any) -> None:
    """Which caps leave the ranking nothing to choose."""
    bounded = (cell for cell in grid.expand() if cell.max_cache_size is not None)
    for cell in {cell.max_cache_size: cell for cell in bounded if not cell.ranks}.values():
        console.print(f"note: {cell.no_choice}", soft_wrap=True, markup=False)


def _crew(on: str, address: str | None, cpus: float, gpus: float) -> Callable[[Any], Any]:
    if on == "here":
        for option, value, default in (("address", address, None), ("cpus", cpus, 1.0), ("gpus", gpus, 0.0)):
            if value != default:
                raise UsageError(f"{option}={value!r} goes with --on ray")

        def here(grid: Any) -> Any:
            from sketch_eval.sweep.run import Here

            return Here(grid)

        return here
    if on != "ray":
        raise UsageError(f"on={on!r}: expected here or ray")
    try:
        from sketch_eval.sweep.on_ray import recruiter
    except ImportError as error:
        raise UsageError(f"on='ray' needs Ray ({error}); pip install 'sketch-eval[ray]'") from error
    return recruiter(address, cpus, gpus)


def _quiet() -> None:
    """Leave the terminal to the progress bar."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _say(report: Report, seconds: float, on: str) -> None:
    """What a sweep did."""
    done = f"{len(report.ran)} runs in {terminal.span(seconds)}"
    if report.ran and on == "here":  # Elsewhere passes are made side by side.
        done += f", of which {1 - report.pass_seconds / seconds:.0%} outside of the model's passes"
    console.print(f"{done}; {len(report.kept)} were there already; {len(report.failed)} failed")
    for job, reason in report.failed.items():
        console.print(f"FAILED {job.name}: {reason}", markup=False)


def _leaderboard(folder: Path, output: Path | None) -> None:
    from sketch_eval.leaderboard.write import write

    written = write(folder, output)
    rows = written.rows
    cells, tasks = len({(row.cell, str(row.cap)) for row in rows}), len({row.task for row in rows})
    if cells <= MOST_CELLS and tasks <= MOST_TASKS:
        console.print(terminal.leaderboard_table(rows, written.tasks))
    if written.missing:
        console.print(written.missing, soft_wrap=True, markup=False)
    console.print(f"leaderboard: {written.page}", soft_wrap=True, markup=False)
