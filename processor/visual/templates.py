"""What renders HTML pages."""
from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent


def environment(folder: Path = HERE) -> Environment:
    """What renders the templates of a folder, and the common ones here: every value is escaped, and a missing one is an
    error."""
    made = Environment(loader=FileSystemLoader([folder, HERE]), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters["commas"] = "{:,}".format
    return made
