"""The OpenAPI document of the embedded FaaS agrees with the running server."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from faasrt import Outcome, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.protocol import piston, sandboxfusion
from faasrt.protocol.program import NOT_STARTED_HEADER
from support.documents import text_of
from support.helpers import WASM
from support.served import exchange, request

# All checks, with boundary values and random ones, valid and invalid, and with the same ones in each run.
SCHEMATHESIS = (
    *("-m", "schemathesis.cli", "run", "--no-color", "--generation-deterministic", "--max-examples", "10"),
    *("--mode", "all", "--phases", "coverage,fuzzing", "--checks", "all", "--request-timeout", "20"),
)


# A server per engine: the minimum of memory differs, and a document for two engines can name only the lower one.
@pytest.mark.parametrize(
    ("languages", "engines"),
    [
        pytest.param(["python"], {}, id="native", marks=pytest.mark.tables),
        pytest.param(["javascript", "typescript"], {}, id="deno", marks=pytest.mark.tables),
        pytest.param(["python"], WASM, id="wasm", marks=pytest.mark.tables),
    ],
)
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("wasm_sandbox")
async def test_the_server_conforms_to_its_openapi_document(
    languages: list[str], engines: dict[str, str], tmp_path: Path
) -> None:
    """Schemathesis finds no undocumented status, header or body, no 5xx, and no invalid request that is accepted."""
    sandbox = SandboxConfig(timeout_limit_s=0.5)
    # Sessions that Schemathesis opens end soon, so that there is always room for another one.
    async with LocalFaaS(
        languages, workers=1, engines=engines, sandbox=sandbox, max_sessions=1_000, session_idle_s=1
    ) as faas:
        await faas.wait_ready(languages[0])
        command = (sys.executable, *SCHEMATHESIS, f"{faas.url}/openapi.json")
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=-1, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        metrics = (await exchange(faas.url, request(method="GET", target="/metrics"))).json()
    # Schemathesis has run programs in every language.
    assert {language for engine in metrics["engines"].values() for language in engine["executions"]} == set(languages)


async def test_the_documents_have_the_routes_of_the_server() -> None:
    """The OpenAPI document has each path with its methods, as has the page about the HTTP API for most."""
    async with LocalFaaS(["bash"], workers=1) as faas:
        document = (await exchange(faas.url, request(method="GET", target="/openapi.json"))).json()
        missing = await exchange(faas.url, request(method="GET", target="/nothing"))
        routes = {}
        for path in missing.json()["details"].removeprefix("the path must be one of ").split(", "):
            refused = await exchange(faas.url, request(method="PATCH", target=path))
            routes[path] = {*refused.headers["allow"].split(",")} - {"HEAD"}
    assert {path: {*map(str.upper, methods)} for path, methods in document["paths"].items()} == routes
    written = re.findall(r"^\| (`[A-Z]+[^|]*?) (/[^`]*)` \|", text_of("faasrt/docs/http-api.md"), re.MULTILINE)
    services = ("/page.", sandboxfusion.SERVER.prefix, piston.SERVER.prefix)
    assert {path: {*re.findall("[A-Z]+", methods)} for methods, path in written} == {
        path: methods for path, methods in routes.items() if not path.startswith(services)
    }


async def test_the_openapi_document_matches_the_code() -> None:
    """Outcomes, languages and limits in the document are those of the server."""
    async with LocalFaaS(["ts"], workers=1, sandbox=SandboxConfig(timeout_limit_s=3)) as faas:
        answer = await exchange(faas.url, request(method="GET", target="/openapi.json"))
    schemas = answer.json()["components"]["schemas"]
    assert answer.headers["content-type"].startswith("application/json")
    assert schemas["RunResult"]["properties"]["outcome"]["enum"] == [str(outcome) for outcome in Outcome]
    executions = schemas["Metrics"]["properties"]["engines"]["additionalProperties"]["properties"]["executions"]
    assert list(executions["properties"]) == ["typescript"]
    assert list(executions["properties"]["typescript"]["properties"]) == [str(outcome) for outcome in Outcome]
    assert schemas["Health"]["properties"]["languages"]["required"] == ["typescript"]
    assert NOT_STARTED_HEADER in answer.json()["components"]["responses"]["Overloaded"]["headers"]
    assert not re.search("{[A-Z_]+}|LANGUAGE", json.dumps(answer.json()))  # every placeholder has its value
    assert schemas["RunRequest"]["properties"]["language"]["enum"] == ["ts", "typescript"]
    assert "3000" in schemas["RunRequest"]["properties"]["timeout"]["description"]
    assert schemas["Sandbox"]["properties"]["network_enabled"] == {"enum": [False, None]}
    assert "8388608" in json.dumps(answer.json()["paths"]["/run_code"]["post"]["requestBody"])
