"""Puts the settings into the page of the Python API: a hook of mkdocs."""

from typing import Any, Final

from efface.asking import TAKEN
from server.cli.options import OPTIONS

MARK: Final = "<!-- settings -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its table."""
    return markdown.replace(MARK, table()) if MARK in markdown else markdown


def table() -> str:
    """Return all settings that are given by name: where, their default, what they mean."""
    lines = ["| Setting | Default | Given to | Meaning |", "| --- | --- | --- | --- |"]
    for option in OPTIONS:
        where = ", ".join(f"`{call}`" for call, keys in TAKEN.items() if option.key in keys)
        if where:
            default = f"`{option.default!r}`"
            lines.append(f"| `{option.name}` | {default} | {where} | {option.help} |")
    return "\n".join(lines)
