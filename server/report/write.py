"""Turn a request's record into one page that an officer and a researcher can both read.

The page holds numbers only: no image of any kind, no script, nothing to fetch. Everything in it
comes from the record; what the record lacks is left out or called "not measured".
"""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from client.files import write_atomic
from server.evidence.later import Later, otherwise
from server.evidence.participation import remarks
from server.evidence.record import Record
from server.evidence.serial import plain
from server.report.channels import channel_section
from server.report.features import (
    at_clients,
    feature_sentence,
    feature_table,
    named_sentence,
    why_no_features,
)
from server.report.later import later_table
from server.report.page import PAGE
from server.report.pictures import cost_plot, phases_plot, relearning_plot
from server.report.stock import stock_table
from server.report.tables import (
    accuracy_table,
    class_table,
    cost_table,
    heldout_table,
    overhead_line,
    participation_table,
    provenance_rows,
    relearning_table,
    round_sizes,
    settings_rows,
    site_table,
    speed_up_rows,
    sums_alone,
)
from server.report.verdict import worded
from server.report.words import facts_of, is_yardstick, outcome_of, title_of


def write_report(record: Record, path: Path, later: Sequence[Later] = ()) -> Path:
    """Write the HTML report of `record` to `path`, whole or not at all.

    Args:
        record: A request's record.
        path: The file to write or replace; missing folders are made. Where `record.json` lies
            beside it, the page links to it.
        later: What verifications have found of it since.

    Returns:
        `path`.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(record, later, linked=(path.parent / "record.json").exists())
    write_atomic(path, page.encode())
    return path


def render(record: Record, later: Sequence[Later] = (), *, linked: bool = False) -> str:
    """Return the report of `record` as one HTML page.

    Args:
        record: A request's record.
        later: What verifications have found of it since.
        linked: Whether the page may link to `record.json` in its own folder.
    """
    outcome = outcome_of(record)[1]
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(PAGE).render(
        title=title_of(record),
        verdict=worded(record),
        facts=facts_of(record),
        record=record,
        accuracy=accuracy_table(record),
        heldout=heldout_table(record),
        sites=site_table(record),
        participation=participation_table(record),
        remarks=remarks(record.participation, record.absences),
        classes=class_table(record),
        phases_plot=phases_plot(record),
        relearning_plot=relearning_plot(record),
        relearning=relearning_table(record),
        features=feature_table(record),
        feature_sentence=feature_sentence(record),
        named_sentence=named_sentence(record),
        at_clients=at_clients(record),
        stock=stock_table(record),
        by_spread=record.verdict is not None and record.verdict.false_alarms is not None,
        why_no_features=why_no_features(record),
        channels=channel_section(record),
        forgets=record.forget is not None,
        retrained=record.retrained is not None,
        itself=is_yardstick(record),
        only_stock=record.kind == "yardstick",
        later=later_table(later),
        otherwise=otherwise(
            None if record.verdict is None else record.verdict.state,
            plain(list(later)),
            None if record.verdict is None else record.verdict.retrainings,
        ),
        notes=() if record.verifies is None else record.verifies.notes,
        judged=record.verifies is not None,
        adds="--compare retrain" if record.verifies is None else "efface yardstick",
        curve_measured=outcome is not None and outcome.curve_mean is not None,
        client_relearned=outcome is not None and outcome.client_relearning is not None,
        cost_plot=cost_plot(record),
        costs=cost_table(record),
        round_sizes=round_sizes(record),
        sums=sums_alone(record),
        scored="score" in record.seconds,
        speed_up=speed_up_rows(record),
        overhead=overhead_line(record),
        provenance=provenance_rows(record),
        settings=settings_rows(record),
        linked=linked,
    )
