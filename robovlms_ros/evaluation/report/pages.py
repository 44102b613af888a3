"""HTML pages out of the templates beside this module: no script, no link, nothing to load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from robovlms_ros.evaluation.report.build import length

TEMPLATES = Path(__file__).with_name("templates")


def page(template: str, **values: Any) -> str:
    """The text of a page; every value that is not markup is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, distance=length, span=span)
    return environment.get_template(template).render(**values)


def number(value: float | None, form: str, scale: float = 1.0, unit: str = "") -> str:
    """A number as text, "-" for None."""
    return "-" if value is None else f"{value * scale:{form}}{unit}"


def span(interval: Mapping[str, Any] | None, unit: str) -> str:
    """The ends of an interval of distances, "-" for None."""
    if interval is None:
        return "-"
    return f"{length(interval['low'], unit)} to {length(interval['high'], unit)}"
