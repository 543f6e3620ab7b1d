"""A hook of MkDocs: the site has the repository's own paths, so that a link that works in one works in the other."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

SHOWN = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "docs/**/*", "tasks/*.md"),
    *(
        "benchmarks/*.md",
        "benchmarks/*.json",
        "results/README.md",
        "results/*/leaderboard.md",
        "results/*/diagnosis.md",
    ),
    *(
        "results/*/leaderboard.csv",
        "results/*/diagnosis.csv",
        "results/*/*.png",
        "sketch_eval/bundled/MODEL_CARD.md",
        "sketch_eval/bundled/rotary/MODEL_CARD.md",
        "sketch_eval/bundled/rotary/WORKS.tsv",
    ),
)
"""What of the repository is in the site, by its path there."""

OUT_OF_THE_MENU = ("results/*/*", "benchmarks/*", "sketch_eval/*/*", "sketch_eval/*/*/*")
"""Pages that others link to, and that the menu leaves out."""

BOARDS = "pages/index.html"
"""What `make pages` makes in `runs`, and the site takes in where it is there."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the leaderboards' own pages in the menu, where they were made."""
    if (Path(config.config_file_path).parent / "runs" / BOARDS).exists():
        config.nav = [*(config.nav or []), {"Leaderboards to sort": BOARDS}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the documents by their paths in the repository, and what they link to beside them."""
    root = Path(config.config_file_path).parent
    kept = [file for file in files if file.src_dir != config.docs_dir]
    found = [(root, path) for path in chain.from_iterable(root.glob(pattern) for pattern in SHOWN)]
    found += [(root / "runs", path) for path in (root / "runs" / "pages").rglob("*")]
    for base, path in sorted({*found}):
        name = path.relative_to(base)
        if path.is_file() and path.suffix != ".py":
            aside = any(name.match(pattern) for pattern in OUT_OF_THE_MENU)
            level = InclusionLevel.NOT_IN_NAV if aside else InclusionLevel.UNDEFINED
            kept.append(File(name.as_posix(), str(base), config.site_dir, config.use_directory_urls, inclusion=level))
    return Files(kept)
