"""The alerts and the dashboard of `faasrt deploy`: they parse, and name metrics and labels that exist."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import aiohttp
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from faasrt import RuntimeManager
from faasrt.local import LocalFaaS
from faasrt.telemetry.prometheus import PrometheusSink
from support.documents import text_of

# Prometheus itself adds these labels, and `le` is that of the buckets of a histogram.
ADDED = {"job", "instance", "le"}
TEMPLATES = files("faasrt.cli.deploy").joinpath("templates")
GROUPS = yaml.safe_load(TEMPLATES.joinpath("prometheus-rules.yaml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
DASHBOARD = json.loads(TEMPLATES.joinpath("grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# What Grafana puts in the place of its variables.
QUERIES = [
    target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*")
    for panel in PANELS
    for target in panel["targets"]
]
MANIFESTS = TEMPLATES.joinpath("kubernetes.yaml").read_text()


async def exposed() -> Mapping[str, set[str]]:
    """Return the labels of all metrics of a server and a client that ran programs, by the names of the samples."""
    registry = CollectorRegistry()
    async with LocalFaaS(["js"], workers=1) as faas, aiohttp.ClientSession() as session:
        await faas.wait_ready("js")
        async with RuntimeManager.from_url(faas.url, telemetry=[PrometheusSink(registry)]) as manager:
            await asyncio.gather(*(manager.run_code(code, "js") for code in ("1", "throw 1")))
        async with session.get(f"{faas.url}/metrics", headers={"Accept": "text/plain"}) as response:
            texts = [await response.text(), generate_latest(registry).decode()]
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for text in texts:
        for family in text_string_to_metric_families(text):
            labels[family.name + ("_total" if family.type == "counter" else "")] |= set()
            for sample in family.samples:
                labels[sample.name] |= set(sample.labels)
    return labels


def nodes_of(expression: str) -> list[promql_parser.Expr]:
    """Parse an expression, and return all nodes of its tree."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(expression), found.append)
    return found


async def test_expressions_name_metrics_and_labels_that_exist() -> None:
    """Every metric of an alert, a panel or the autoscaler is exposed, with the labels that select and group it."""
    labels = await exposed()
    for expression in [rule["expr"] for rule in RULES] + QUERIES:
        nodes = nodes_of(expression)
        names = {str(node.name) for node in nodes if isinstance(node, promql_parser.VectorSelector)}
        assert names
        assert names <= set(labels), expression
        known = set.intersection(*(labels[name] for name in names)) | ADDED
        for node in nodes:
            if isinstance(node, promql_parser.VectorSelector):
                matched = {matcher.name for matcher in node.matchers.matchers}
                assert matched <= labels[str(node.name)] | ADDED, expression
            elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
                assert set(node.modifier.labels) <= known, expression
    scaled = set(re.findall(r"metric: \{name: (\w+)\}", MANIFESTS))
    assert len(scaled) == 2
    assert scaled <= set(labels)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("sum(", "unclosed left parenthesis"),
        ("rate(faasrt_calls_total)", "expected type matrix"),
        ("faasrt_calls_total{outcome=}", "invalid promql query"),
    ],
)
def test_the_parser_refuses_wrong_expressions(expression: str, message: str) -> None:
    """An open parenthesis, a vector in place of a range and a matcher without a value are errors."""
    with pytest.raises(ValueError, match=message):
        promql_parser.parse(expression)


def test_alerts_have_all_that_prometheus_wants() -> None:
    """Names are unique; each alert has a duration, a severity and texts, whose labels its expression keeps."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        groups = re.findall(r"sum by \(([\w, ]+)\)", rule["expr"])
        if groups:
            assert used <= set(re.findall(r"\w+", groups[0]))


def test_the_guide_says_what_to_do_about_each_alert() -> None:
    """The table of the page lists the alerts in the order of the file."""
    table = re.findall(r"^\| (Faasrt\w+) \| ", text_of("faasrt/docs/running-a-fleet.md"), re.MULTILINE)
    assert table == [rule["alert"] for rule in RULES]


def read_by_grafana(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Return a dashboard as the types of Grafana keep it: without the fields that it does not know."""
    register_default_plugins()
    return dict(json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard))))


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of the fields that are missing or different in the second of two objects."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            yield from lost(value, after.get(name), f"{path}/{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif before != after:
        yield path


def test_grafana_knows_all_fields_of_the_dashboard() -> None:
    """Grafana's own types keep every field, and would lose a misspelt one."""
    assert list(lost(DASHBOARD, read_by_grafana(DASHBOARD))) == []
    wrong = json.loads(json.dumps(DASHBOARD).replace("legendFormat", "legendFormats").replace("gridPos", "gridpos"))
    found = list(lost(wrong, read_by_grafana(wrong)))
    assert "/panels/1/targets/0/legendFormats" in found
    assert "/panels/1/gridpos" in found


def test_panels_do_not_overlap_and_are_described() -> None:
    """Ids are unique, and each panel has a title, a description and queries of the chosen data source."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        cells = set(itertools.product(range(x, x + width), range(y, y + height)))
        assert x + width <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert [target["refId"] for target in panel["targets"]] == ["A", "B", "C"][: len(panel["targets"])]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["legendFormat"]
