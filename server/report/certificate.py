"""A certificate as a page to be printed: the words of the signed file, for people.

The page itself is not signed: it says so, and how the file is verified.
"""

from collections.abc import Mapping
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from server.evidence.certificate import sentences
from server.evidence.later import otherwise
from server.evidence.wording import STATES
from server.report.verdict import TONES
from server.report.words import as_count, as_percent, as_seconds, as_time
from server.storage import keys

_MODELS: Final = {
    "original": "Original",
    "unlearned": "Unlearned",
    "recovered": "Recovered",
    "retrained": "Retrained",
}


def render(found: Mapping[str, Any], public: str) -> str:
    """Return a verified statement as one HTML page.

    Args:
        found: As `server.evidence.certificate.read` returns it.
        public: The key that verified it, base64.
    """
    told = found["predicate"]
    asked, run, seal = told["request"], told["run"], told["seal"]
    before, after = told["versions"]["before"], told["versions"]["after"]
    facts = [
        ("Asked by", asked["asked_by"] or "not recorded"),
        ("Why", asked["why"] or "not recorded"),
        ("Asked on", as_time(asked["asked"])),
        ("Finished", as_time(asked["finished"])),
        ("Version before", f"{before['id']}, SHA-256 {before['sha256']}"),
        ("Version after", f"{after['id']}, SHA-256 {after['sha256']}"),
        ("Method", " ".join(filter(None, (run["method"], run["options"])))),
        ("Engine", run["engine"]),
        ("Client code", f"SHA-256 {run['code_sha256']}"),
        ("Task", run["task"] and f"{run['task']['name']}, SHA-256 {run['task']['sha256']}"),
        ("Commit", run["commit"] or "not recorded"),
        ("Order to the sites", f"signed {as_time(told['order']['time'])}"),
        ("Seal in the ledger", f"number {seal['number']}, SHA-256 {seal['sha256']}"),
        ("Signed by", f"{public} (SHA-256 {keys.fingerprint(public)})"),
        ("Issued", as_time(told["issued"])),
    ]
    measures = [
        (_MODELS[name], as_percent(one["forget_accuracy"]), as_percent(one["retain_accuracy"]))
        for name, one in told["measures"].items()
        if one is not None
    ]
    took = [
        (one["client"], one["phase"], f"{as_count(one['answered'])} of {as_count(one['rounds'])}")
        for one in told["participants"]
    ]
    costs = [(phase, as_seconds(value)) for phase, value in told["costs"]["seconds"].items()]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(PAGE).render(
        request=asked["id"],
        tone=TONES[told["verdict"]["state"]],
        state=STATES[told["verdict"]["state"]],
        otherwise=otherwise(
            told["verdict"]["state"],
            told.get("verifications", []),
            told["verdict"].get("retrainings"),
        ),
        says=sentences(found)[:-1],
        facts=[(name, str(value)) for name, value in facts if value],
        measures=measures,
        took=took,
        costs=costs,
        waiting=told["waiting"],
        limits=told["limits"],
    )


PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Certificate of {{ request }} · Efface</title>
<style>
:root { --ink: #1b2430; --muted: #566273; --rule: #d3d9e1; --soft: #f6f8fa;
  --pass: #19643c; --fail: #a42a12; --open: #6b5300; }
* { box-sizing: border-box; }
body { margin: 0; padding: 3rem 1.5rem; color: var(--ink); background: #ffffff;
  font: 1rem/1.5 "Source Sans 3", "Segoe UI", system-ui, "Liberation Sans", Arial, sans-serif; }
main { max-width: 50rem; margin-inline: auto; }
h1 { font: 600 1.9rem/1.2 Charter, Georgia, "Liberation Serif", serif; margin: .2rem 0 .6rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; padding-top: .6rem;
  border-top: 1px solid var(--rule); }
p, li { margin: .4rem 0; overflow-wrap: anywhere; }
.over { font-size: .8rem; letter-spacing: .09em; text-transform: uppercase; color: var(--muted); }
.verdict { padding: .9rem 1.2rem; background: var(--soft); border-left: 5px solid var(--open); }
.verdict.pass { border-color: var(--pass); } .verdict.fail { border-color: var(--fail); }
.stamp { font-weight: 650; margin: 0; color: var(--open); }
.pass .stamp { color: var(--pass); } .fail .stamp { color: var(--fail); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; font-size: .93rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.4rem .3rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-weight: 600; }
footer { margin-top: 2rem; color: var(--muted); font-size: .85rem; }
@page { margin: 18mm; }
@media print { body { padding: 0; } h2, tr { break-after: avoid; }
  .verdict { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<p class="over">Efface · Certificate</p>
<h1>Request {{ request }}</h1>
<div class="verdict {{ tone }}">
<p class="stamp">Verdict: {{ state }}</p>
{% if otherwise %}
<p><b>{{ otherwise }}</b></p>
{% endif %}
{% for text in says %}
<p>{{ text }}</p>
{% endfor %}
</div>
<dl>
{% for name, value in facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
<h2>Measures</h2>
<table>
<thead><tr><th>Model</th><th>To be forgotten</th><th>The rest</th></tr></thead>
<tbody>
{% for name, forget, retain in measures %}
<tr><td>{{ name }}</td><td>{{ forget }}</td><td>{{ retain }}</td></tr>
{% endfor %}
</tbody>
</table>
<h2>Who took part</h2>
<table>
<thead><tr><th>Client</th><th>Phase</th><th>Rounds answered</th></tr></thead>
<tbody>
{% for client, phase, answered in took %}
<tr><td>{{ client }}</td><td>{{ phase }}</td><td>{{ answered }}</td></tr>
{% endfor %}
</tbody>
</table>
{% if waiting %}
<p>Still to carry out the order: {{ waiting | join(", ") }}.</p>
{% endif %}
<h2>Cost</h2>
<table>
<thead><tr><th>Phase</th><th>Wall time</th></tr></thead>
<tbody>
{% for phase, seconds in costs %}
<tr><td>{{ phase }}</td><td>{{ seconds }}</td></tr>
{% endfor %}
</tbody>
</table>
<h2>What this does not say</h2>
<ul>
{% for text in limits %}
<li>{{ text }}</li>
{% endfor %}
</ul>
<footer>This page is for reading; what is signed is the file of the certificate. It is verified,
offline, by <code>efface certificate verify FILE --key KEY</code>.</footer>
</main>
</body>
</html>
"""
