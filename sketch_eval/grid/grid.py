"""The config of a sweep: a model, tasks, and blocks of cells, as a YAML file (docs/design.md §7)."""

from __future__ import annotations

import itertools
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from sketch_eval.config import CONTROLS, CacheConfig, nearest
from sketch_eval.errors import UsageError


class Model(BaseModel):
    """The model: HFLM's arguments of the same names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretrained: str = "gpt2"
    revision: str = "main"
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    max_length: int | None = Field(default=None, ge=1)
    device: str | None = None
    batch_size: int = Field(default=8, ge=1)

    def arguments(self) -> dict[str, Any]:
        """What was given or is no default of HFLM's, for its constructor and its command line."""
        return {key: value for key, value in self.model_dump().items() if value is not None and value != "main"}


class Task(BaseModel):
    """How one task is run, and which of its metrics are tabled.

    Attributes:
        limit: the first documents of the task; None is all.
        num_fewshot: as in lm-eval; None is the task's own.
        metrics: those of the table, the first of them the one that plots show first; None is all that it can take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    metrics: tuple[str, ...] | None = Field(default=None, min_length=1)


class Block(BaseModel):
    """Cells: the product of every field of `CacheConfig` that is given as a list, of the controls and of the variants.

    Attributes:
        controls: names of the control ladder (docs/design.md §4), each a change of the cell.
        variants: further changes of several fields at once, such as `{topk: 32}` and `{strategy: aggregate}`.
        axes: the fields of `CacheConfig`, each with its values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    controls: tuple[str, ...] = ()
    variants: tuple[dict[str, Any], ...] = Field(default=({},), min_length=1)
    axes: dict[str, tuple[Any, ...]] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_axes(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            raise ValueError(f"{given!r} should be a mapping of fields to values")
        known, axes = {*CacheConfig.model_fields, "controls", "variants"}, {}
        for field, value in given.items():
            _refuse_seed(field)
            if field not in known:
                raise ValueError(f"{field} is not a field of a cell{nearest(str(field), known)}")
            if field in CacheConfig.model_fields:
                axes[field] = tuple(value) if isinstance(value, list) else (value,)
                if not axes[field]:
                    raise ValueError(f"{field} has no values: give one or more, or leave it out")
        return {key: given[key] for key in ("controls", "variants") if key in given} | {"axes": axes}

    @model_validator(mode="after")
    def _varies_what_it_says(self) -> Block:
        for name, (field, values) in itertools.product(self.controls, self.axes.items()):
            if name != "full" and field in CONTROLS[name] and values != (CONTROLS[name][field],):
                raise ValueError(
                    f"{field}={', '.join(map(str, values))}: the control {name} sets it itself, to "
                    f"{CONTROLS[name][field]}; give the control a block of its own, or write its fields as a variant: "
                    f"{CONTROLS[name]}"
                )
        return self

    @field_validator("variants")
    @classmethod
    def _have_no_seed(cls, variants: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for field in itertools.chain(*variants):
            _refuse_seed(field)
        return variants

    @field_validator("controls")
    @classmethod
    def _are_controls(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in CONTROLS:
                raise ValueError(
                    f"{name} is no control{nearest(name, CONTROLS)}; expected some of {', '.join(CONTROLS)}"
                )
        return names

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"controls": self.controls, "variants": self.variants, **self.axes}

    def cells(self, defaults: dict[str, Any]) -> list[CacheConfig]:
        """Every cell of the block; `defaults` are the fields of all blocks.

        Raises:
            UsageError: a value, or a combination, that makes no cell.
        """
        controls = [CONTROLS[name] for name in self.controls] or [{}]
        return [
            CacheConfig.parse(**(defaults | dict(zip(self.axes, values, strict=True)) | control | variant))
            for control, *values, variant in itertools.product(controls, *self.axes.values(), self.variants)
        ]


class Grid(BaseModel):
    """A sweep. The full cache is part of every one.

    Attributes:
        description: what the leaderboard says of itself, below its title.
        model: the model.
        tasks: options of each task or group of lm-eval's, by name.
        include_path: a folder with more tasks, as lm-eval's option of that name.
        metadata: what tasks are told, as lm-eval's option of that name, such as `{text_folder: books}`.
        defaults: fields of every cell, where its block does not say otherwise.
        cells: the blocks of cells.
        seeds: hash seeds; a row is the mean of all of them.
        reference: arguments, beside `defaults`, of the cell that all others of its cap are compared with, if any.
        twin: instead of that, arguments by which each cell differs from the one that it alone is compared with, such as
            `{scope: layer}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    model: Model = Model()
    tasks: dict[str, Task] = Field(min_length=1)
    include_path: str | None = None
    metadata: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    cells: tuple[Block, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    reference: dict[str, Any] | None = None
    twin: dict[str, Any] | None = None

    @field_validator("tasks", mode="before")
    @classmethod
    def _read_short_tasks(cls, value: Any) -> Any:
        """A task without options may stand alone: `tasks: [wikitext]`, or `wikitext:` with nothing after it."""
        if isinstance(value, list):
            for entry in value:
                if not isinstance(entry, str):
                    raise ValueError(f"{entry!r} in a list: options go in a mapping, such as `kv_256: {{limit: 3}}`")
            value = dict.fromkeys(value)
        return (
            {key: {} if entry is None else entry for key, entry in value.items()} if isinstance(value, dict) else value
        )

    @field_validator("defaults", "reference", "twin")
    @classmethod
    def _has_no_seed(cls, fields: dict[str, Any] | None) -> dict[str, Any] | None:
        for field in fields or {}:
            _refuse_seed(field)
        return fields

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("should have each seed once")
        return seeds

    @model_validator(mode="after")
    def _compares_once(self) -> Grid:
        if self.reference is not None and self.twin is not None:
            raise ValueError("reference and twin both say what cells are compared with; leave one of them out")
        return self

    def expand(self) -> list[CacheConfig]:
        """The cells but the full cache, each once, with the first seed.

        Raises:
            UsageError: as `Block.cells`.
        """
        defaults = {"seed": self.seeds[0]} | self.defaults
        cells = (cell for block in self.cells for cell in block.cells(defaults))
        return list(dict.fromkeys(cell for cell in cells if not cell.untouched))

    def reference_of(self, cell: CacheConfig) -> CacheConfig | None:
        """The cell that another one is compared with; None where there is none.

        Raises:
            UsageError: `reference`, or `twin` in this cell, makes no cell.
        """
        cap = cell.max_cache_size
        if cap is None or (self.reference is None and self.twin is None):
            return None
        if self.twin is not None:
            return CacheConfig.parse(**(cell.model_dump() | self.twin))
        same = {"seed": self.seeds[0]} | self.defaults | (self.reference or {})
        return CacheConfig.parse(**(same | {"max_cache_size": cap}))


def _refuse_seed(field: Any) -> None:
    if field == "seed":
        raise ValueError("seed goes in the grid's own key, such as `seeds: [0, 1]`")


def read(config: str) -> Grid:
    """The grid of a YAML file, or of a config of this package by name.

    `extends: FILE` in it takes the other file's keys, replaced by this one's own.

    Raises:
        UsageError: no such file, no YAML, a key or a value that makes no grid.
    """
    content = _load(_find(config))
    try:
        grid = Grid.model_validate(content)
    except ValidationError as error:
        errors = [one for one in error.errors() if not _follows(one, error.errors())]
        raise UsageError(f"{config}: " + "; ".join(map(_explain, errors))) from None
    try:
        for cell in grid.expand():
            grid.reference_of(cell)
    except UsageError as error:
        raise UsageError(f"{config}: cells: {error}") from None
    return grid


def _find(config: str, beside: Path | None = None) -> Path:
    """A config's file: as given, beside the file that extends it, or in the package."""
    shipped = files("sketch_eval") / "configs"
    folder = Path(str(shipped)) if shipped.is_dir() else Path(__file__).parents[2] / "configs"
    places = [Path(config), *([beside.parent / config] if beside else [])]
    if Path(config).name == config:
        places += [folder / config, folder / f"{config}.yaml"]
    for path in places:
        if path.is_file():
            return path
    names = [path.stem for path in sorted(folder.glob("*.yaml")) if not path.name.startswith("lm_eval")]
    near = nearest(config.removesuffix(".yaml"), names)
    raise UsageError(f"config={config!r}{near}: no such file; give a path, or one of {', '.join(names)}")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is there twice rather than forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is there twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _load(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a file, with what it extends."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a mapping with tasks and cells, found {type(content).__name__}")
    if path in seen:
        raise UsageError(f"{path}: extends itself")
    if "extends" in content:
        content = _load(_find(str(content.pop("extends")), beside=path), (*seen, path)) | content
    return content


def _follows(error: Any, errors: list[Any]) -> bool:
    """Whether a list is said to be empty only because its entries are wrong, which other errors say."""
    place = error["loc"]
    return error["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in errors
    )


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors."""
    place, *rest = error["loc"] or ("",)
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        fields = {"model": Model.model_fields, "tasks": Task.model_fields}.get(place, {}) if rest else Grid.model_fields
        return f"{where} is not a key{nearest(str(error['loc'][-1]), fields)}"
    if error["type"] == "missing" or error["type"] == "too_short":
        return f"{where}: give at least one"
    wanted = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    wanted = wanted.replace("valid tuple", "list").replace("valid dictionary", "mapping")
    return f"{where}: {wanted}" if error["type"] == "value_error" else f"{where}={error['input']!r}: {wanted}"
