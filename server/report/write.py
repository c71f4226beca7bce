"""Turn a request's record into one page that an officer and a researcher can both read.

The page holds numbers only: no image of any kind, no script, nothing to fetch. Everything in it
comes from the record; what the record lacks is left out or called "not measured".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, Undefined

from client.errors import BadSetting
from client.files import write_atomic
from server.report.channels import channel_section
from server.report.judgement import judge, limits_of
from server.report.page import PAGE
from server.report.pictures import cost_plot, phases_plot, relearning_plot
from server.report.tables import (
    accuracy_table,
    class_table,
    cost_table,
    heldout_table,
    overhead_line,
    provenance_rows,
    relearning_table,
    round_sizes,
    speed_up_rows,
)
from server.report.words import as_setting, curve_mean, outcome_of, title_of


def write_report(record: Mapping[str, Any], path: Path) -> Path:
    """Write the HTML report of `record` to `path`, whole or not at all.

    Args:
        record: A request record, format 1, not changed. Values may be null.
        path: The file to write or replace; missing folders are made. Where `record.json` lies
            beside it, the page links to it.

    Returns:
        `path`.

    Raises:
        BadSetting: If the record is of another format.
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(record, linked=(path.parent / "record.json").exists())
    write_atomic(path, page.encode())
    return path


def render(record: Mapping[str, Any], *, linked: bool = False) -> str:
    """Return the report of `record` as one HTML page.

    Args:
        record: A request record, format 1.
        linked: Whether the page may link to `record.json` in its own folder.

    Raises:
        BadSetting: If the record is of another format.
    """
    if record.get("format") != 1:
        raise BadSetting(
            f"record format must be 1, got {record.get('format')!r}; "
            "write the report with the Efface that wrote the record"
        )
    environment = Environment(
        autoescape=True,
        # A key that an older record lacks reads as null does.
        undefined=Undefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(PAGE).render(
        title=title_of(record),
        verdict=judge(record),
        record=record,
        accuracy=accuracy_table(record),
        heldout=heldout_table(record),
        classes=class_table(record),
        phases_plot=phases_plot(record),
        relearning_plot=relearning_plot(record),
        relearning=relearning_table(record),
        channels=channel_section(record),
        forgets=bool(record.get("forget")),
        retrained=bool(record.get("retrained")),
        curve_measured=curve_mean(outcome_of(record)[1]) is not None,
        cost_plot=cost_plot(record),
        costs=cost_table(record),
        round_sizes=round_sizes(record),
        scored="score" in (record.get("seconds") or {}),
        speed_up=speed_up_rows(record),
        overhead=overhead_line(record),
        provenance=provenance_rows(record),
        settings=sorted(
            (str(key), as_setting(value)) for key, value in (record.get("settings") or {}).items()
        ),
        accuracy_tolerance=f"{limits_of(record)[0]:g}",
        relearning_tolerance=f"{limits_of(record)[1]:g}",
        linked=linked,
    )
