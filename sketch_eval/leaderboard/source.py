"""Where the code is that a table was made by."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any


def repository() -> str:
    """Where the code is: as the package says, or GitHub's workflow; empty where neither knows."""
    try:
        links = dict(line.split(", ", 1) for line in metadata("sketch_eval").get_all("Project-URL") or [])
    except PackageNotFoundError:
        links = {}
    known = next((links[name] for name in ("Repository", "Source", "Homepage") if name in links), "")
    if not known and os.environ.get("GITHUB_REPOSITORY"):
        known = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{os.environ['GITHUB_REPOSITORY']}"
    return known if known.startswith("https://") else ""


def commit_address(about: dict[str, Any], repository: str) -> str:
    """The address of the commit that the table was made at; empty where it is not known."""
    commit = str(about.get("commit") or "")
    return f"{repository}/commit/{commit}" if repository and commit.isalnum() else ""
