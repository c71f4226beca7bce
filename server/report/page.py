"""The report's page, as a Jinja template.

In a Python file, because a Flower app bundle carries no other kind of template. It is long because
a report is one page.
"""

# ruff: noqa: E501

PAGE = r"""{% macro show(table, corner, caption) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ caption }}">
<table>
<caption>{{ caption }}</caption>
<thead>
{% if table.groups %}
<tr><td></td>{% for name, span in table.groups %}<th colspan="{{ span }}" scope="colgroup" class="group">{{ name }}</th>{% endfor %}</tr>
{% endif %}
<tr><th scope="col" class="name">{{ corner }}</th>{% for heading in table.headings %}<th scope="col">{{ heading }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for name, cells, mark in table.rows %}
<tr{% if mark %} class="{{ mark }}"{% endif %}><th scope="row">{{ name }}</th>
{%- if cells | length == 1 and table.headings | length > 1 %}<td colspan="{{ table.headings | length }}" class="missing">{{ cells[0] }}</td>
{%- else %}{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}{% endif %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }} ({{ record.request or "request" }}) · Efface</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b2430; --muted: #566273; --rule: #d3d9e1; --soft: #f6f8fa;
  --pass: #19643c; --fail: #a42a12; --open: #6b5300;
  --plot-ink: #1b2430; --plot-muted: #566273; --plot-rule: #d3d9e1; --plot-band: #f1f4f8;
  --plot-retained: #a3b0c0; --plot-forget: #b3400e; --plot-retrain: #1a5fa6; --plot-original: #4c5866;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #12161b; --ink: #e4e8ed; --muted: #a0abb8; --rule: #343d48; --soft: #1a2027;
    --pass: #7fd3a2; --fail: #ff9d80; --open: #e5c769;
    --plot-ink: #e4e8ed; --plot-muted: #a0abb8; --plot-rule: #343d48; --plot-band: #1a2027;
    --plot-retained: #5e6c7d; --plot-forget: #f39a63; --plot-retrain: #7fb4ee; --plot-original: #b4bfcb;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; padding: 3rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 "Source Sans 3", "Segoe UI", system-ui, -apple-system, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
}
main, header, footer { max-width: 56rem; margin-inline: auto; }
h1, .sentence { font-family: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "Liberation Serif", serif; }
h1 { font-size: 2rem; line-height: 1.2; font-weight: 600; margin: .2rem 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 2.75rem 0 .6rem; padding-top: .7rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { margin: .5rem 0; max-width: 44rem; }
ul { max-width: 44rem; padding-left: 1.2rem; margin: .5rem 0; }
li { margin: .4rem 0; }
.over span { text-transform: none; letter-spacing: normal; }
.over { font-size: .8rem; letter-spacing: .09em; text-transform: uppercase; color: var(--muted); margin: 0; }
.under, .note { color: var(--muted); font-size: .9rem; }
.under { margin: 0; max-width: none; }
.verdict { margin: 1.75rem 0 0; padding: 1.1rem 1.35rem 1.2rem; background: var(--soft); border-left: 5px solid var(--open); }
.verdict.pass { border-color: var(--pass); } .verdict.fail { border-color: var(--fail); }
.sentence { font-size: 1.3rem; line-height: 1.42; margin: .2rem 0 0; max-width: none; overflow-wrap: anywhere; }
.stamp { font-weight: 650; margin: 0; font-size: .95rem; }
.pass .stamp, .tone-pass { color: var(--pass); } .fail .stamp, .tone-fail { color: var(--fail); }
.open .stamp, .tone-open { color: var(--open); }
.note .stamp, .tone-note { color: var(--muted); } .verdict.note { border-color: var(--muted); color: inherit; font-size: inherit; }
.findings { display: grid; grid-template-columns: max-content max-content 1fr; gap: .3rem 1.4rem; margin: 1.1rem 0 0; padding-top: .9rem; border-top: 1px solid var(--rule); font-size: .93rem; }
.findings > div { display: contents; }
.findings dt { font-weight: 600; } .findings dd { margin: 0; }
.findings .tone { font-weight: 600; white-space: nowrap; }
.scroll { overflow-x: auto; margin: .9rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums lining-nums; }
caption { text-align: left; color: var(--muted); font-size: .87rem; padding-bottom: .35rem; }
th, td { padding: .34rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; white-space: normal; color: var(--muted); font-size: .84rem; vertical-align: bottom; border-bottom: 1px solid var(--ink); }
thead th.group { border-bottom: 0; padding-bottom: 0; color: var(--ink); }
tbody th { font-weight: 500; text-align: left; } thead th.name { text-align: left; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
tr.yardstick > * { background: var(--soft); } tr.yardstick > th { box-shadow: -.5rem 0 var(--soft); } tr.yardstick > td:last-child { box-shadow: .5rem 0 var(--soft); }
.scroll { padding-inline: .5rem; margin-inline: -.5rem; }
tr.yardstick + tr:not(.yardstick) > *, tr.total > * { border-top: 1px solid var(--muted); }
tr.total > *, tr.forgotten > * { font-weight: 650; } tr.forgotten > * { color: var(--plot-forget); }
td.missing { text-align: left; color: var(--muted); font-style: italic; white-space: normal; }
#channels td:last-child, #channels thead th:last-child { text-align: left; white-space: normal; }
summary { cursor: pointer; } details.more { margin: .9rem 0; } details.more > summary { color: var(--muted); font-size: .93rem; }
figure.layer { margin: .7rem 0 1.1rem; }
.narrow table { width: auto; min-width: 20rem; }
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { color: var(--muted); font-size: .87rem; margin-top: .3rem; max-width: 44rem; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: .75rem 0; font-size: .93rem; }
.facts dt { color: var(--muted); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.facts.first { margin: 1rem 0 0; padding-top: .8rem; border-top: 1px solid var(--rule); } .facts.first dd { font-weight: 600; }
.settings { columns: 19rem; column-gap: 2.5rem; margin: .5rem 0; padding: 0; list-style: none; font-size: .87rem; max-width: none; }
.settings li { display: flex; justify-content: space-between; gap: 1rem; margin: 0; padding: .18rem 0; border-bottom: 1px solid var(--rule); break-inside: avoid; }
.settings span:first-child { color: var(--muted); } .settings span:last-child { text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
p code, li code { white-space: nowrap; }
code { font-family: ui-monospace, "Cascadia Mono", Menlo, "Liberation Mono", monospace; font-size: .9em; overflow-wrap: anywhere; }
a { color: inherit; }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--rule); color: var(--muted); font-size: .85rem; }
@media (max-width: 46rem) {
  body { padding: 1.75rem 1rem 3rem; } h1 { font-size: 1.6rem; } .sentence { font-size: 1.15rem; }
  th, td { padding-inline: .35rem; } table { font-size: .87rem; } thead th { font-size: .79rem; }
  /* A plot keeps a width at which it can be read, and is moved sideways. */
  figure { overflow-x: auto; } figure svg { width: 40rem; max-width: none; } figcaption { position: sticky; left: 0; }
  .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .45rem; }
  .findings { grid-template-columns: max-content 1fr; } .findings dd:last-child { grid-column: 1 / -1; margin-bottom: .5rem; }
}
@media print {
  @page { size: A4; margin: 17mm 15mm; }
  html { font-size: 10pt; } body { padding: 0; } main, header, footer { max-width: none; }
  h1 { font-size: 19pt; } h2 { font-size: 12pt; break-after: avoid; } .sentence { font-size: 13pt; }
  figure, table, .verdict, li { break-inside: avoid; } .scroll { overflow: visible; }
  .verdict, tr.yardstick > *, figure svg { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
</style>
</head>
<body>
<header>
<p class="over">Efface · report of request{% if record.request %} <span>{{ record.request }}</span>{% endif %}</p>
<h1>{{ title }}</h1>
</header>
<main>
<section class="verdict {{ "open" if otherwise else verdict.tone }}" aria-label="Verdict">
{% if otherwise %}
<p class="stamp">{{ otherwise }}</p>
{% endif %}
<p class="stamp">{{ verdict.label }}</p>
<p class="sentence">{{ verdict.sentence }}</p>
{% if facts %}
<dl class="facts first">
{% for name, value in facts %}
<dt>{{ name }}</dt>
<dd>{{ value }}</dd>
{% endfor %}
</dl>
{% endif %}
{% if verdict.findings %}
<dl class="findings">
{% for finding in verdict.findings %}
<div><dt>{{ finding.title }}</dt>
<dd class="tone tone-{{ finding.tone }}">{{ finding.label }}</dd>
<dd>{{ finding.text }}</dd></div>
{% endfor %}
</dl>
{% endif %}
</section>

{% if later %}
<section id="later">
<h2>Judged again</h2>
<p>Since this request ended, its result was measured again and judged by all that was known then. The verdict above is the request’s own and stays as it was sealed; each verification has a report of its own.</p>
<div class="narrow">{{ show(later, "Verification", "Verifications of this request, oldest first") }}</div>
</section>
{% endif %}

{% if notes %}
<section id="notes">
<h2>Notes</h2>
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</section>
{% endif %}

{% if accuracy %}
<section id="accuracy">
<h2>Accuracy</h2>
{{ show(accuracy, "Model", "Test data; accuracy in percent" ~ (", difference to Retrained in percent points" if retrained else "")) }}
{% if record.original and record.original.membership is not none %}
<p class="note"><b>Surer of members</b>: by how many points the model is surer of examples that the client trained with than of those that the other clients hold out: a difference in mean confidence (the true class’s probability). By itself it says little, for one client’s examples may be easier than others’; it is to be read beside that of retrained models, which saw neither.{% if client_relearned %} <b>Client relearning</b> is the same of each half of those examples when a copy of the model has learned the other half again for a few steps, at the client: what was only held down comes back with it.{% endif %}</p>
{% endif %}
{% if forgets %}
<p class="note"><b>Original</b> is the model before the request, <b>Retrained</b> the yardstick: retrained from scratch without the forget set. <b>Unlearned</b> and <b>Recovered</b> are the request’s two phases, <b>Relearned</b> the model after the data was given back. The forget set is what was to be forgotten, the retain set all the rest; forget and retain accuracy are measured on them.{% if not retrained and not itself %} Retrained was not measured for this request: <code>{{ adds }}</code> measures it, at the price of one full training.{% endif %}</p>
{% endif %}
{% if heldout %}
<div class="narrow">{{ show(heldout, "Model", "Data that the clients hold out and never train on") }}</div>
{% endif %}
</section>
{% endif %}

{% if sites or participation %}
<section id="clients">
<h2>Clients</h2>
{% if remarks %}
<ul>
{% for remark in remarks %}
<li>{{ remark }}</li>
{% endfor %}
</ul>
{% endif %}
{% if sites %}
<div class="narrow">{{ show(sites, "Client", "Accuracy before and after on what each client holds out, as the client says; of many clients those that differ most from the median") }}</div>
{% endif %}
{% if participation %}
{{ show(participation, "Client and phase", "Rounds in which a client’s answer counted, and in which it used data of its own: one whose data are forgotten still answers, and trains on nothing; the most examples that it used in one round; and how long its updates were: the distance from the model that it was sent") }}
{% endif %}
</section>
{% endif %}

{% if phases_plot or classes %}
<section id="classes">
<h2>Accuracy over the phases</h2>
{% if phases_plot %}
<figure>
{{ phases_plot }}
<figcaption>Test accuracy in percent after each evaluated round; phases follow one another from left to right, each on its own scale of rounds.</figcaption>
</figure>
{% endif %}
{% if classes %}
<div{% if classes.headings | length == 1 %} class="narrow"{% endif %}>
{{ show(classes, "Class", "Test accuracy of each class in percent, after each phase" if (record.num_classes or 0) <= 20 else "Test accuracy in percent: the forgotten classes, and the ten others that moved most") }}
</div>
{% endif %}
</section>
{% endif %}

{% if forgets %}
<section id="relearning">
<h2>Relearning</h2>
{% if relearning_plot %}
<p>Each model is trained for a few steps on a small fixed set that holds some of the forgotten data. Data that was hidden rather than forgotten comes back at once; data that was forgotten comes back as slowly as in Retrained, which never saw it. The aim is Retrained’s curve: far below it means that the request went deeper than retraining would.</p>
<figure>
{{ relearning_plot }}
</figure>
{% if relearning %}
{{ show(relearning, "After steps", "Forget accuracy in percent after so many steps") }}
{% endif %}
{% if only_stock %}
{% elif not curve_measured %}
<p class="note">The result’s own curve was not measured.</p>
{% elif not retrained and not itself %}
<p class="note">Retrained’s curve was not measured; <code>{{ adds }}</code> adds it.</p>
{% endif %}
{% elif client_relearned %}
<p>The client held no class alone, so that there is no class to learn again. How its own examples come back is under <a href="#accuracy">Accuracy</a>: client relearning.</p>
{% else %}
<p>Not measured for this request.</p>
{% endif %}
</section>
{% endif %}

{% if stock %}
<section id="stock">
<h2>Retrained models</h2>
<p>{{ stock.rows|length }} model{{ "s were" if stock.rows|length != 1 else " was" }} retrained from scratch without the forget set, with other seeds and nothing else different. {% if by_spread %}How far they lie apart sets the limits of the verdict.{% elif record.verdict %}That is too few to show how far such models lie apart: the limits of the verdict were set by hand.{% else %}How far they lie apart sets the limits of verdicts, from three of them on.{% endif %}</p>
{{ show(stock, "Model", "On test data") }}
</section>
{% endif %}

{% if features or why_no_features %}
<section id="features">
<h2>Below the last layer</h2>
{% if features %}
{% if feature_sentence %}<p>{{ feature_sentence }}</p>{% endif %}
<p>A model’s last layer can be edited so that it no longer names a class, while the layers below still know it. These measures look below. A result that forgot reads as Retrained does in every column; one that lies nearer to Original still holds some of the class, whatever it answers.{% if by_spread %} All but CKA and neighbours decide the verdict.{% else %} They are for information: to decide the verdict they need three retrained models or more.{% endif %}</p>
{{ show(features, "Model", "On examples that clients held out" if at_clients else "On " ~ record.features.examples ~ " test examples of what was forgotten" if record.features.examples else "On test examples") }}
{% if record.features.classes %}
<p>What a client shares with others is not forgotten with it, so that only the classes that it alone held are measured here.</p>
{% endif %}
{% if at_clients %}
<p>The coordinator has no test examples: clients measured what needs only counts from them.</p>
{% endif %}
{% if named_sentence %}<p>{{ named_sentence }}</p>{% endif %}
<ul class="note">
<li><b>Last layer put back</b> (head back): how much is recognised with Original’s last layer in the model’s own place. A high number is a find; a low one shows nothing by itself.</li>
<li><b>Empty last layer</b> (blank head): how fast the class is learned again from a last layer that says nothing of it; the mean of the relearning curve.</li>
<li><b>Class means</b> and <b>probe</b>: how much is recognised with a simple new last layer, made of few labelled examples (at most 50 and 10 of each class). Any model tells classes apart that it never saw: read them against Retrained’s row.</li>
<li><b>Features matched</b> and <b>turned</b> (matched head, turned head): the last layer put back on a model whose features are Original’s in another order, or turned. How that came about is found on examples of what was to stay.</li>
<li><b>CKA</b> and <b>neighbours</b>: how alike the model and Retrained see the same examples; 1 is the same, and another retraining would not reach it either.</li>
</ul>
{% else %}
<p>{{ why_no_features }}</p>
{% endif %}
</section>
{% endif %}

{% if channels %}
<section id="channels">
<h2>Channels</h2>
<p>{{ channels.summary }}{% if channels.action == "pruned" %} A pruned channel gives nothing from then on; channels that earlier requests pruned are counted in.{% elif channels.action == "trained" %} Only these were trained to forget; every other weight stayed as it was in that phase.{% endif %}</p>
{% if channels.open %}
<h3>{{ channels.title }}</h3>
<p class="note">The stronger the tone, the higher the score{{ "" if channels.by_class else ", in each row on a scale of its own" }}; blank is zero or below, a thin line not measured. Marks above the rows show the channels {{ channels.action }}{{ "; the forgotten classes are framed" if channels.by_class else "" }}.{% if channels.cut %} Of the classes, the forgotten are shown (ten at most) and the ten others that score highest on the channels {{ channels.action }}.{% endif %}{% if channels.folded %} The layers with the most channels {{ channels.action }} come first; the others can be opened below them.{% endif %}</p>
{% for plot in channels.open %}
<figure class="layer">{{ plot }}</figure>
{% endfor %}
{% if channels.folded %}
<details class="more"><summary>The other {{ channels.folded | length }} layer{{ "" if channels.folded | length == 1 else "s" }}</summary>
{% for plot in channels.folded %}
<figure class="layer">{{ plot }}</figure>
{% endfor %}
</details>
{% endif %}
{% endif %}
{{ show(channels.table, "Layer", "Channels " ~ channels.action ~ " in each layer") }}
</section>
{% endif %}

{% if costs %}
<section id="cost">
<h2>Cost</h2>
{% if only_stock %}
<p>Of one model, Retrained 0.</p>
{% endif %}
{% if cost_plot %}
<figure>
{{ cost_plot }}
<figcaption>Wall time of each phase without evaluation, on one linear scale.</figcaption>
</figure>
{% endif %}
{{ show(costs, "Phase", "Wall time excludes evaluation; client time is summed over clients; samples are counted each time they are touched; asking and measuring: counts asked of the clients, their held-out data, the guard" ~ ("; score: channels are measured, the model stays as it is" if scored else "")) }}
{% if round_sizes %}
<div class="narrow">{{ show(round_sizes, "Message", "What a client sends up in a round in which it works, against the model’s arrays: bytes up divided by the answers of clients that " ~ ("took part" if sums else "used data")) }}</div>
{% endif %}
{% if speed_up %}
<h3>Speed-up over retraining</h3>
<div class="narrow">{{ show(speed_up.table, "Against retraining", "Wall time of retraining divided by wall time of forgetting") }}</div>
<p class="note">“One request alone” divides retraining’s {{ speed_up.retrain }} by the request’s {{ speed_up.request }}.{% if speed_up.slower %} Below 1× the request took longer than retraining.{% endif %}{% if speed_up.overhead %} It leaves out what training had to pay beforehand. The amortised figures put that in: for <i>q</i> requests they divide <i>q</i> retrainings by the overhead in training ({{ speed_up.overhead }}) plus <i>q</i> requests.{% endif %}</p>
{% elif forgets and not itself and not only_stock and not judged %}
<p class="note">Speed-up was not measured: it needs the time of retraining (<code>--compare retrain</code>).</p>
{% endif %}
{% if overhead %}
<h3>Overhead in training</h3>
<p>{{ overhead }}</p>
{% endif %}
</section>
{% endif %}

{% if forgets and not only_stock %}
<section id="evidence">
<h2>What this evidence can and cannot say</h2>
<ul>
<li>It is statistical evidence, not proof. It shows how the model behaves on test data; it does not show that nothing of the forgotten data is left in the weights.</li>
<li>Accuracy alone cannot tell hidden from forgotten: a model may score 0 % on a class and yet have it back after a few training steps. That is why relearning is measured beside it{{ "" if curve_measured or client_relearned else "; here it was not" }}.</li>
{% if by_spread %}
<li>The limits beside each finding come from {{ record.verdict.retrainings }} retrained models and are made to hold for honest retrainings in {{ (100 * (1 - record.verdict.false_alarms))|round|int }} of 100 cases or more; on a single small data set it may be some fewer. Few models give wide limits, within which some of the data may be left.</li>
{% elif retrained %}
<li>Retrained is a single model from a single seed. Another retraining would differ by some points; differences of that size mean nothing. The limits beside each finding are those that the request asked for.</li>
{% elif itself %}
<li>The result was retrained from scratch: it is the yardstick, and nothing is left to compare it with. That the data took no part rests on the run, not on these numbers.</li>
{% else %}
<li>Without Retrained there is no yardstick: the numbers say how the model changed, not whether it changed as far as it should. <code>{{ adds }}</code> measures it.</li>
{% endif %}
{% if record.original and record.original.membership is not none %}
<li>How much surer the model is of the client’s training examples is a difference of means, read beside retrained models. No attack on single examples was run, and no reconstruction of data from the weights was tried.</li>
{% else %}
<li>This page tests neither membership inference nor reconstruction of data from the weights.</li>
{% endif %}
<li>It speaks of the new version only.{% if record.base_version %} Version {{ record.base_version }} and every copy of it still carry what was learned from the data.{% endif %}</li>
</ul>
</section>
{% endif %}

<section id="provenance">
<h2>Provenance</h2>
<dl class="facts">
{% for name, value in provenance %}
<dt>{{ name }}</dt>
<dd>{% if name == "Command" and value != "not recorded" %}<code>{{ value }}</code>{% else %}{{ value }}{% endif %}</dd>
{% endfor %}
</dl>
{% if settings %}
<h3>Settings</h3>
<ul class="settings">
{% for name, value in settings %}
<li><span>{{ name }}</span><span>{{ value }}</span></li>
{% endfor %}
</ul>
{% endif %}
</section>
</main>
<footer>A dash ({{ "–" }}) means not measured. {% if linked %}All numbers, for machines: <a href="record.json">record.json</a>. {% endif %}This page holds no training data, no synthetic data and nothing that is loaded from elsewhere.</footer>
</body>
</html>
"""
