"""The tools of `faasrt mcp`: programs and files in sessions of a FaaS, for a model.

A client of MCP has a workspace: a session of faasrt for each language, opened when a tool first needs it. With stdio,
the process has one workspace. Over HTTP, each session of MCP has one. MCP has no sessions any more since its version
2026-07-28: there, a result names the workspace, and the model passes this name to further calls.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import glob
import itertools
import json
import mimetypes
import secrets
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import attrs
from mcp.server import Server, ServerRequestContext
from mcp.types import (
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from faasrt import __version__
from faasrt.agents import IMAGES, MAX_TEXT_BYTES, AgentSession, describe, join_lines, refusal
from faasrt.cli.mcp_files import OUTPUT_FOLDER, Collector, OutputFolder, split_files
from faasrt.cli.mcp_greeting import INSTRUCTIONS
from faasrt.client.manager import RuntimeManager
from faasrt.client.session import Session
from faasrt.config import SandboxConfig
from faasrt.errors import FaasrtError, InvalidRequestError, OverloadedError, RejectedError, SessionLostError
from faasrt.inputs import check_path
from faasrt.languages import Language
from faasrt.protocol.health import read_profile
from faasrt.protocol.streams import cut_text, replace_surrogates
from faasrt.results import OutputChunk
from faasrt.telemetry.logs import log_error

SESSION_HEADER = "mcp-session-id"
"""The header with the id of a session of MCP."""
_MAX_NAMED = 20
_WRONG = 400
_BRANCHING = ("begin_branch", "end_branch")
_READING = ("read_file", "list_files")
_LANGUAGE_OF_TOOL = {"run_python": Language.PYTHON, "run_javascript": Language.JAVASCRIPT}

Report = Callable[[OutputChunk], Awaitable[None]]


class ToolError(Exception):
    """A failure of a tool that the model cannot mend by other code or another path. The message is for the model."""


class Reply:
    """The answer of a tool to a model. With an `outcome`, it is the result of a program. All text is one block, the
    first one, because some clients show a model no other.
    """

    def __init__(self, text: str = "", *blocks: ContentBlock, outcome: str = "") -> None:
        self._text, self._blocks, self._outcome = "", blocks, outcome
        self.add(text)

    def add(self, text: str) -> None:
        """Add a text in lines of its own."""
        self._text = join_lines(self._text, text)

    def to_result(self, *, is_error: bool = False) -> CallToolResult:
        text = replace_surrogates(self._text) or ("" if self._blocks else "(no output)")
        structured = None
        # Some clients show a model only the structured content. So it has the whole text, and a result with images has
        # none. Others show only the text, which has the outcome of a failure.
        if self._outcome and not self._blocks:
            structured = {"outcome": self._outcome, "output": text}
        content = [*([TextContent(text=text)] if text else []), *self._blocks]
        return CallToolResult(content=content, structured_content=structured, is_error=is_error)


@attrs.frozen
class SessionSetup:
    """The settings of all sessions. They begin with `files`, and the files that they make go to `output`.

    Attributes:
        parts: `files`, in parts that a FaaS accepts in a request.
    """

    sandbox: SandboxConfig
    idle_s: float
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    output: OutputFolder | None = None
    parts: Sequence[Mapping[str, bytes]] = attrs.field(init=False)

    @parts.default
    def _split(self) -> Sequence[Mapping[str, bytes]]:
        return split_files(self.files)


class Workspace:
    def __init__(self, manager: RuntimeManager, setup: SessionSetup) -> None:
        self.calls, self.used_at = 0, 0.0
        self._setup = setup
        self._collectors: dict[Language, Collector] = {}
        self._agents = {
            language: AgentSession(
                manager,
                language,
                sandbox=setup.sandbox,
                idle_timeout_s=setup.idle_s,
                begin=functools.partial(self._begin, language),
            )
            for language in _LANGUAGE_OF_TOOL.values()
        }

    @property
    def is_open(self) -> bool:
        return any(agent.is_open for agent in self._agents.values())

    async def call(self, tool: str, arguments: dict[str, Any], report: Report) -> Reply:
        """`report` gets the output of a program while it runs. Raise ToolError or FaasrtError if the tool fails."""
        if tool == "reset":
            await self.aclose()
            return Reply("Variables and files are gone. The next call begins anew.")
        language = _LANGUAGE_OF_TOOL.get(tool) or Language(arguments.get("language", Language.PYTHON))
        agent = self._agents[language]
        if tool == "end_branch" and not agent.branches:
            return Reply("There is no branch to end. begin_branch begins one.")
        await agent.open()
        try:
            if tool == "begin_branch":
                await agent.begin_branch()
                return Reply(_BRANCH_BEGINS)
            if tool == "end_branch":
                await agent.end_branch(keep=arguments["action"] == "keep")
                if arguments["action"] == "drop":
                    return Reply("The branch is dropped. Variables and files are those from before begin_branch.")
            async with agent.use() as session:
                reply = await self._use(session, tool, arguments, report)
                if tool not in _READING:
                    await self._collect(session, reply)
                return reply
        except (InvalidRequestError, RejectedError) as error:
            return Reply(refusal(error))
        except SessionLostError as error:
            raise ToolError(error.message) from None

    async def _use(self, session: Session, tool: str, arguments: dict[str, Any], report: Report) -> Reply:
        match tool:
            case "end_branch":
                return Reply("The branch is kept: its variables and files are those of the session now.")
            case "write_file":
                await session.write_files({arguments["path"]: _content_of(arguments)})
                return Reply(f"{arguments['path']} is written.")
            case "read_file":
                return await self._read_file(session, arguments["path"])
            case "list_files":
                lines = [f"{path} ({size:,} bytes)" for path, size in sorted((await session.list_files()).items())]
                return Reply(_cut("\n".join(lines)) or "There are no files.")
            case _:
                return await self._run(session, arguments["code"], report)

    async def _begin(self, language: Language, session: Session) -> None:
        try:
            for files in self._setup.parts:
                await session.write_files(files)
        except RejectedError as error:
            if error.status != _WRONG:  # otherwise, sessions of this language have no files there
                reason = error.details or error.message
                raise ToolError(f"The files of the user cannot be put into a session: {reason}") from None
        if self._setup.output is not None:
            self._collectors[language] = Collector(self._setup.output, language)

    async def _collect(self, session: Session, reply: Reply) -> None:
        language = Language(session.language)
        # The files of a branch are collected when it is kept.
        if language in self._collectors and not session.lost_reason and not self._agents[language].branches:
            limit = self._setup.sandbox.max_output_bytes
            for line in await self._collectors[language].collect(session, limit):
                reply.add(_cut(line))

    async def _run(self, session: Session, code: str, report: Report) -> Reply:
        async with session.stream_code(code) as run:
            async for chunk in run:
                await report(chunk)
        ending = self._agents[Language(session.language)].ending_of(session)
        observation = describe(run.result, ending)
        images = [_image(content, mime_type) for mime_type, content in observation.images]
        return Reply(observation.text, *images, outcome=run.result.outcome)

    async def _read_file(self, session: Session, path: str) -> Reply:
        check_path(path, "path")  # else the message is about a pattern
        content = (await session.read_files([glob.escape(path)])).get(path)
        if content is None:
            return Reply(f"There is no file {path!r}.")
        mime_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        if mime_type in IMAGES:
            return Reply("", _image(content, mime_type))
        with contextlib.suppress(UnicodeDecodeError):
            return Reply(_cut(content.decode()) or "The file is empty.")
        encoded = base64.b64encode(content).decode()
        blob = BlobResourceContents(uri=f"file:///{quote(path)}", mime_type=mime_type, blob=encoded)
        return Reply("", EmbeddedResource(resource=blob))

    async def aclose(self) -> None:
        """End the sessions. The next call opens new ones."""
        for agent in self._agents.values():
            await agent.aclose()


class SandboxTools:
    """Lists and calls the tools for all clients of a server, with a manager that has been entered. Workspaces that were
    not used for `idle_s` of `setup` are dropped.
    """

    def __init__(self, manager: RuntimeManager, setup: SessionSetup) -> None:
        self._manager, self._setup = manager, setup
        self._workspaces: dict[str, Workspace] = {}

    def make_server(self) -> Server[Any]:
        return Server(
            "faasrt",
            version=__version__,
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )

    async def close_workspace(self, name: str) -> None:
        if (workspace := self._workspaces.pop(name, None)) is not None:
            await workspace.aclose()

    async def _list_tools(
        self, context: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        tools = self._tools(context)
        if not await self._can_fork():
            tools = [tool for tool in tools if tool.name not in _BRANCHING]
        return ListToolsResult(tools=tools)

    async def _can_fork(self) -> bool:
        if Language.PYTHON not in self._manager.get_supported_languages():
            return False
        if (faas := self._manager.local_faas) is not None:  # `get_runtime` would wait until the engine is ready
            engine = faas.engine(Language.PYTHON)
            return engine is not None and "fork" in engine.session_features
        health = await (await self._manager.get_runtime(Language.PYTHON)).get_health_status()
        return any("fork" in read_profile(entry.details).sessions.get("python", ()) for entry in health.endpoints)

    def _tools(self, context: ServerRequestContext[Any]) -> list[Tool]:
        served = self._manager.get_supported_languages()
        languages = [language for language in _LANGUAGE_OF_TOOL.values() if language in served]
        return make_tools(languages, self._setup, takes_session=_workspace_name(context) is None)

    async def _call_tool(self, context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        schemas = {tool.name: tool.input_schema for tool in self._tools(context)}
        try:
            if params.name not in schemas:
                raise ToolError(f"There is no tool {params.name!r}. The tools are {', '.join(schemas)}.")
            arguments = _check_arguments(params.arguments or {}, schemas[params.name])
            return (await self._call(context, params.name, arguments)).to_result()
        except ToolError as error:
            return _failure(str(error))
        except FaasrtError as error:
            return _failure(f"{type(error).__name__}: {error.message}")
        except Exception as error:  # the log must not have its message, which may quote the program
            frames = "".join(traceback.format_tb(error.__traceback__))
            log_error("a tool failed with %s, raised from:\n%s", type(error).__name__, frames, name="faasrt.mcp")
            return _failure("The tool failed. This is an error of the server, not of the code.")

    async def _call(self, context: ServerRequestContext[Any], tool: str, arguments: dict[str, Any]) -> Reply:
        numbers = itertools.count(1)

        async def report(chunk: OutputChunk) -> None:
            await context.session.report_progress(next(numbers), message=replace_surrogates(chunk.text))

        name = _workspace_name(context) or arguments.pop("session", None)
        is_new = name is None
        if name is None:
            name = secrets.token_urlsafe(16)
        elif _workspace_name(context) is None and name not in self._workspaces:
            raise ToolError(f"There is no session {name!r} any more. Leave out 'session' to begin a new one.")
        workspace = await self._workspace(name)
        workspace.calls += 1
        try:
            reply = await workspace.call(tool, arguments, report)
        except OverloadedError as error:
            if not is_new:
                raise
            hint = "If you have a session, pass its name as 'session': without it, a new one begins."
            raise ToolError(f"{type(error).__name__}: {error.message}\n{hint}") from None
        finally:
            workspace.calls -= 1
            workspace.used_at = asyncio.get_running_loop().time()
            if is_new and not workspace.is_open:  # nothing to go on with
                del self._workspaces[name]
        if is_new and workspace.is_open:
            reply.add(f"To go on with this state, pass session={json.dumps(name)} to further calls.")
        return reply

    async def _workspace(self, name: str) -> Workspace:
        if name not in self._workspaces:
            forgotten_at = asyncio.get_running_loop().time() - self._setup.idle_s
            for other, workspace in list(self._workspaces.items()):
                if workspace.calls == 0 and workspace.used_at < forgotten_at:
                    await self.close_workspace(other)
        return self._workspaces.setdefault(name, Workspace(self._manager, self._setup))


def _check_arguments(arguments: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    properties = schema["properties"]
    problems = [f"There is no argument {name!r}." for name in arguments if name not in properties]
    if problems:
        problems.append(f"The arguments are {', '.join(properties) or 'none'}.")
    for name, each in properties.items():
        allowed = each.get("enum")
        must = f"must be {' or '.join(allowed) if allowed else 'a string'}"
        if name not in arguments:
            if name in schema["required"]:
                problems.append(f"The argument {name!r} is missing. It {must}.")
        elif not isinstance(arguments[name], str) or (allowed and arguments[name] not in allowed):
            problems.append(f"The argument {name!r} {must}.")
    if problems:
        raise ToolError(" ".join(problems))
    return {name: each["default"] for name, each in properties.items() if "default" in each} | arguments


def _workspace_name(context: ServerRequestContext[Any]) -> str | None:
    return "stdio" if context.request is None else context.request.headers.get(SESSION_HEADER)


_BRANCH_BEGINS = "Python now runs in a branch. End it with end_branch, to keep or to drop its variables and files."


def _image(content: bytes, mime_type: str) -> ImageContent:
    return ImageContent(data=base64.b64encode(content).decode(), mime_type=mime_type)


def _cut(text: str) -> str:
    return cut_text(text, MAX_TEXT_BYTES)[0]


def _failure(message: str) -> CallToolResult:
    return Reply(_cut(message)).to_result(is_error=True)


def _content_of(arguments: dict[str, Any]) -> bytes:
    content: str = arguments["content"]
    is_text = arguments["encoding"] == "utf-8"
    try:
        return content.encode() if is_text else base64.b64decode(content, validate=True)
    except ValueError:
        raise InvalidRequestError(f"The content is not {'UTF-8' if is_text else 'Base64'}.") from None


def make_tools(languages: Sequence[Language], setup: SessionSetup, *, takes_session: bool) -> list[Tool]:
    sandbox = setup.sandbox
    files = ""
    if setup.files:
        names = [f"{name} ({len(content):,} bytes)" for name, content in setup.files.items()]
        rest = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
        files = f" The folder of the code has files of the user: {', '.join(names[:_MAX_NAMED])}{rest}."
    if setup.output is not None:
        files += f" Files that the code writes into the folder {OUTPUT_FOLDER} are given to the user, but no links."
    limits = (
        "Variables, imports and files are kept for the next call, even if the code fails, until reset. There is no "
        "network, and no access to the user's files and programs. Packages cannot be installed. "
        f"A call may take {sandbox.timeout_limit_s:g} s and {sandbox.memory_limit_mb:,} MiB of memory. Text above "
        f"{MAX_TEXT_BYTES:,} bytes is cut in the middle.{files}"
    )
    runs = {
        Language.PYTHON: "Run Python code. The result has what it prints, the value of its last expression, and its "
        f"matplotlib figures as images. Top-level await works. {limits}",
        Language.JAVASCRIPT: "Run JavaScript code, in Deno. The result has what it prints, and the value of its last "
        f"expression. Top-level await works. {limits}",
    }
    code = {"code": {"type": "string", "description": "The code to run."}}
    path = {"path": {"type": "string", "description": "A relative path, such as data/a.csv."}}
    language = {
        "language": {
            "type": "string",
            "enum": [*map(str, languages)],
            "default": str(next(iter(languages), "")),
            "description": "The language whose folder is used. Each language has a folder of its own.",
        }
    }
    encoding = {"type": "string", "enum": ["utf-8", "base64"], "default": "utf-8"}
    content = {"content": {"type": "string"}, "encoding": {**encoding, "description": "base64 is for binary files."}}

    def tool(name: str, description: str, properties: dict[str, Any], *, reads: bool = False) -> Tool:
        required = [key for key, schema in properties.items() if "default" not in schema]
        if takes_session:
            properties = {**properties, "session": _SESSION}
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        # The sandbox is the whole world of these tools, and nothing in it belongs to the user.
        hints = ToolAnnotations(read_only_hint=reads, destructive_hint=name == "reset", open_world_hint=False)
        return Tool(name=name, description=description, input_schema=schema, annotations=hints)

    read = (
        f"Read a file of at most {sandbox.max_output_bytes:,} bytes in the folder of the code. "
        "A picture is returned as an image."
    )
    action = {"action": {"type": "string", "enum": ["keep", "drop"]}}
    return [
        *(tool(name, runs[runs_in], code) for name, runs_in in _LANGUAGE_OF_TOOL.items() if runs_in in languages),
        tool("write_file", "Write a file into the folder of the code.", path | content | language),
        tool("read_file", read, path | language, reads=True),
        tool("list_files", "List the files in the folder of the code.", language, reads=True),
        tool("begin_branch", _BEGIN_BRANCH, {}),
        tool("end_branch", _END_BRANCH, action),
        tool("reset", "End all programs, and delete all variables and files. The next call begins a new session.", {}),
    ]


_BEGIN_BRANCH = (
    "Begin a branch: a copy of the Python session, with all its variables and files. From then on, all tools for "
    "Python use the branch, and the original waits unchanged, until end_branch. Use it before a step that you may want "
    "to undo, or to try several ways from the same state: begin a branch, try one, end the branch with action=drop, "
    "begin the next. It takes milliseconds. A branch that crashes ends by itself, and the original is used again. "
    "Branches can be nested."
)
_END_BRANCH = (
    "End the branch that began last. action=keep: its variables and files replace those of the original. action=drop: "
    "they are deleted, and the original is used again, as it was at begin_branch."
)
_SESSION = {
    "type": "string",
    "description": "The name of the session to use, from an earlier result. Without it, a new session begins.",
}
