"""The page: everything that it shows is in it, and nothing in it but its own script may run."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from faasrt import __version__
from faasrt.cli.report import charts
from faasrt.cli.report.figures import Distribution, Report, Throughput
from faasrt.cli.report.markup import Markup, element, join
from faasrt.cli.report.results import INFRASTRUCTURE, INVALID_TASK, KINDS, OTHER, Task
from faasrt.cli.report.units import elapsed, milliseconds, moment, percent, rate

_SHOWN_SLOWEST, _SHOWN_FAILING = 10, 25
_WORDS = {
    "OK": "ran to its end",
    "USER_ERROR": "an exception, or an exit code that is not 0",
    "SYNTAX_ERROR": "the program does not parse",
    "TIMEOUT": "ended at its time limit",
    "MEMORY_LIMIT": "ended at its memory limit",
    "OUTPUT_LIMIT": "ended for writing too much",
    "CRASHED": "the interpreter ended without a reason",
    INFRASTRUCTURE: "no verdict: the service failed, not the code",
    INVALID_TASK: "not run: the task itself is malformed",
    OTHER: "an outcome that this version does not know",
}
_NAMES = {INFRASTRUCTURE: "Infrastructure", INVALID_TASK: "Invalid task", OTHER: "Other"}


def render(report: Report) -> str:
    """Give the page; it has no lone surrogates and can be encoded."""
    own = files("faasrt.cli.report")
    style, script = ((own / name).read_text("utf-8") for name in ("page.css", "page.js"))
    body = join(
        _header(report),
        _notes(report),
        _tiles(report),
        _outcomes(report),
        _times(report),
        _throughput(report.throughput) if report.throughput else None,
        _filter(report),
        _slowest(report),
        _failing(report),
    )
    return Template((own / "page.html").read_text("utf-8")).substitute(
        title=element("title", f"{report.name} · faasrt report"),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=__version__,
        body=body,
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _name(kind: str) -> str:
    return _NAMES.get(kind, kind)


def _header(report: Report) -> Markup:
    when = None
    if times := report.throughput:
        span = elapsed(times.end_s - times.start_s)
        start, end = moment(times.start_s), moment(times.end_s)
        end = end.removeprefix(start[:11])  # the day, when it is the same
        when = element("p", f"{start} to {end} UTC, {span}", class_="when")
    return element("header", element("p", "Batch report", class_="over"), element("h1", report.name), when)


def _notes(report: Report) -> Markup | None:
    rows, notes = report.rows, []
    if rows.torn:
        notes.append("The file ends in the middle of a result, as after a crash: what is torn off is not counted.")
    if rows.unreadable:
        lines = "line is" if rows.unreadable == 1 else "lines are"
        notes.append(
            f"{rows.unreadable:,} {lines} no results and not counted, the first is line {rows.first_unreadable:,}."
        )
    if rows.superseded:
        notes.append(f"{rows.superseded:,} earlier results gave way to later ones of the same task.")
    items = [element("li", note) for note in notes]
    return element("ul", items, class_="notes", aria_label="Notes on the file") if items else None


def _tiles(report: Report) -> Markup:
    counts, total = report.counts, report.total
    infra = counts.get(INFRASTRUCTURE, 0)
    invalid = counts.get(INVALID_TASK, 0)
    code = report.failed - infra - invalid
    latency = report.latency.p95 if report.latency else math.nan
    tiles = [
        ("Results", f"{total:,}", "one for each task"),
        ("OK", percent(counts.get("OK", 0), total), f"{counts.get('OK', 0):,} tasks"),
        ("Code failed", f"{code:,}", f"{percent(code, total)} of the tasks"),
        ("Not judged", f"{infra + invalid:,}", f"{infra:,} infrastructure, {invalid:,} invalid"),
        ("Latency, p95", milliseconds(latency), "what callers waited"),
        ("Throughput", rate(report.throughput.per_s if report.throughput else math.nan), "mean, first to last"),
    ]
    return element(
        "dl",
        (element("div", element("dt", name), element("dd", value), element("dd", more, class_="more"))
         for name, value, more in tiles),
        class_="tiles",
    )  # fmt: skip


def _outcomes(report: Report) -> Markup:
    total, counts = report.total, report.counts
    words = [f"{_name(kind)} {percent(count, total)}" for kind, count in counts.items()]
    bar = charts.shares(
        ((f"kind {kind}", count, word) for (kind, count), word in zip(counts.items(), words, strict=True)),
        total,
        "Shares: " + ", ".join(words),
    )
    rows = (
        element(
            "tr",
            element("th", _swatch(kind), element("span", _name(kind), class_="name"), scope="row"),
            element("td", _WORDS[kind], class_="words wide"),
            element("td", f"{count:,}", class_="number"),
            element("td", percent(count, total), class_="number"),
        )
        for kind, count in counts.items()
    )
    table = _table(("Outcome", "~Meaning", "#Tasks", "#Share"), rows, caption="Outcomes")
    return _section("Outcomes", bar, table)


def _times(report: Report) -> Markup:
    return element(
        "div",
        _time("Latency", "total_ms", "what the caller waited, queues and retries included", report.latency),
        _time("Duration", "duration_ms", "the server's figure for the execution", report.duration),
        class_="pair",
    )


def _time(title: str, field: str, meaning: str, data: Distribution | None) -> Markup:
    lead = element("p", element("code", field), f": {meaning}.", class_="lead")
    if data is None:
        return _section(title, lead, element("p", "No result tells it.", class_="none"))
    figures = (("p50", data.p50), ("p95", data.p95), ("p99", data.p99), ("max", data.maximum), ("mean", data.mean))
    named = {name: milliseconds(value) for name, value in figures}
    label = f"Histogram of {data.count:,} results: " + ", ".join(f"{name} {value}" for name, value in named.items())
    rows = (
        element("tr", element("th", span, scope="row"), element("td", f"{count:,}", class_="number"))
        for span, count in zip(charts.bin_names(data), data.counts, strict=True)
    )
    scale = "a logarithmic scale" if data.logarithmic else "a linear scale"
    return _section(
        title,
        lead,
        element("dl", (element("div", element("dt", name), element("dd", value)) for name, value in named.items()),
                class_="quantiles"),
        element(
            "figure",
            charts.histogram(data, label),
            element("figcaption", f"Number of results by time, on {scale}; {data.count:,} in all."),
        ),
        _as_table(_table(("Time", "#Results"), rows, caption=title)),
    )  # fmt: skip


def _throughput(data: Throughput) -> Markup:
    count = sum(data.ok) + sum(data.failed)
    width = elapsed(data.bin_s)
    rows = (
        element(
            "tr",
            element("th", elapsed(number * data.bin_s), scope="row"),
            element("td", f"{ok:,}", class_="number"),
            element("td", f"{failed:,}", class_="number"),
        )
        for number, (ok, failed) in enumerate(zip(data.ok, data.failed, strict=True))
    )
    label = f"Results for each {width}, {count:,} in all: {rate(data.per_s)} on average"
    return _section(
        "Throughput",
        element("p", f"Results for each {width}, by the time since the first one; {count:,} in all.", class_="lead"),
        element(
            "figure",
            charts.throughput(data, label),
            element("figcaption", _key("good"), "OK, lower part ", _key("bad"), "not OK, upper part", class_="keys"),
        ),
        _as_table(_table(("From", "#OK", "#Not OK"), rows, caption="Throughput")),
    )


def _filter(report: Report) -> Markup | None:
    kinds = [kind for kind in KINDS if any(task.kind == kind for task in (*report.slowest, *report.failing))]
    if not kinds:
        return None
    choices = (
        element(
            "label",
            element("input", type="radio", name="kind", value=kind, checked=not kind),
            element("span", _swatch(kind) if kind else None, _name(kind) if kind else "All"),
        )
        for kind in ("", *kinds)
    )
    return element(
        "form",
        element("fieldset", element("legend", "Show outcome"), element("div", choices, class_="choices")),
        element("label", element("span", "Search id or reason"), element("input", type="search", id="search"),
                class_="search"),
        id="filter",
        class_="scripted",
        aria_label="Filter the tasks below",
    )  # fmt: skip


def _slowest(report: Report) -> Markup | None:
    if not report.slowest:
        return None
    known = report.latency.count if report.latency else 0
    rows = (
        element(
            "tr",
            element("th", element("bdi", task.id), scope="row", class_="id"),
            element("td", _badge(task.kind)),
            element("td", milliseconds(task.total_ms), class_="number"),
            element("td", milliseconds(task.duration_ms), class_="number"),
            element("td", task.facts.get("attempts", ""), class_="number wide"),
            element("td", element("bdi", task.facts.get("endpoint", "")), class_="wide"),
            data_kind=task.kind,
        )
        for task in report.slowest
    )
    heads = ("Task", "Outcome", "#Latency", "#Duration", "#~Attempts", "~Endpoint")
    table = _table(heads, rows, caption="Slowest tasks, slowest first", id="slowest", data_first=_SHOWN_SLOWEST)
    return _section("Slowest tasks", _left_out(len(report.slowest), known, "slowest"), table, _more("slowest"))


def _failing(report: Report) -> Markup:
    if not report.failing:
        return _section("Failing tasks", element("p", "None: every task is OK.", class_="none"))
    items = (
        element(
            "li",
            element(
                "details",
                element(
                    "summary",
                    _badge(task.kind),
                    element("bdi", task.id, class_="id"),
                    element("bdi", task.reason or _WORDS[task.kind], class_="reason"),
                    element("span", milliseconds(task.total_ms), class_="took"),
                ),
                element(
                    "div", _facts(task), (_stream(name, text) for name, text in task.texts.items()), class_="inside"
                ),
            ),
            data_kind=task.kind,
        )
        for task in report.failing
    )
    return _section(
        "Failing tasks",
        _left_out(len(report.failing), report.failed, "first of the file, a share for each outcome"),
        element("button", "Open all shown", type="button", id="open", class_="scripted"),
        element("ol", items, id="failing", data_first=_SHOWN_FAILING),
        _more("failing"),
    )


def _facts(task: Task) -> Markup:
    times = {"latency": task.total_ms, "duration": task.duration_ms}
    facts = {**task.facts, **{name: milliseconds(value) for name, value in times.items() if not math.isnan(value)}}
    return element(
        "dl",
        (
            element("div", element("dt", name), element("dd", element("bdi", value)))
            for name, value in facts.items()
        ),
        class_="facts",
    )  # fmt: skip


def _stream(name: str, text: str) -> Markup:
    class_ = "as-it-is" if name == "traceback" else None  # its columns mean something
    block = element("pre", element("code", text), tabindex=0, role="region", aria_label=name, class_=class_)
    return join(element("h3", name), block)


def _left_out(shown: int, known: int, which: str) -> Markup:
    left = known - shown
    words = f"All {shown:,}." if not left else f"{shown:,} of {known:,}: the {which}; {left:,} are left out."
    return element("p", words, element("span", aria_live="polite", class_="matches"), class_="lead")


def _more(controls: str) -> Markup:
    return element("button", "Show all", type="button", class_="scripted all", aria_controls=controls)


def _section(title: str, *children: object) -> Markup:
    place = title.lower().replace(" ", "-") + "-section"
    return element("section", element("h2", title, id=place), children, aria_labelledby=place)


def _table(heads: Sequence[str], rows: Iterable[Markup], caption: str, **attributes: object) -> Markup:
    """Give a table; `#` before a head is for numbers, `~` for what may go where room is scarce."""
    cells = (
        element("th", head.lstrip("#~"), scope="col",
                class_=" ".join(name for sign, name in (("#", "number"), ("~", "wide")) if sign in head) or None)
        for head in heads
    )  # fmt: skip
    return element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", cells)),
        element("tbody", rows),
        **attributes,
    )


def _as_table(table: Markup) -> Markup:
    return element("details", element("summary", "The figures as a table"), table, class_="figures")


def _swatch(kind: str) -> Markup:
    return element("span", class_=f"swatch kind {kind}", aria_hidden="true")


def _key(class_: str) -> Markup:
    return element(
        "svg", element("rect", class_=f"bar {class_}", width=14, height=14), width=14, height=14, aria_hidden="true"
    )


def _badge(kind: str) -> Markup:
    return element("span", _swatch(kind), _name(kind), class_="badge")
