"""The tools of `faasrt mcp`: programs and files in sessions of a FaaS, for a model.

A client of MCP has a workspace: a session of faasrt for each language, opened when a tool first needs it. With stdio,
the process has one workspace. Over HTTP, each session of MCP has one. MCP has no sessions any more since its version
2026-07-28: there, a result names the workspace, and the model passes this name to further calls.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import glob
import itertools
import json
import mimetypes
import secrets
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
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
from faasrt.cli.mcp_files import OUTPUT_FOLDER, Collector, OutputFolder, split_files
from faasrt.cli.mcp_greeting import INSTRUCTIONS
from faasrt.client.manager import RuntimeManager
from faasrt.client.session import Session
from faasrt.config import SandboxConfig
from faasrt.errors import FaasrtError, InvalidRequestError, RejectedError, SessionLostError
from faasrt.inputs import check_path
from faasrt.languages import Language
from faasrt.protocol.health import read_profile
from faasrt.protocol.streams import cut_text
from faasrt.results import Display, ExecutionResult, OutputChunk
from faasrt.telemetry.logs import log_error

SESSION_HEADER = "mcp-session-id"
"""The header with the id of a session of MCP."""
_MAX_TEXT_BYTES = 40_000
_MAX_NAMED = 20
_UNAUTHORIZED, _WRONG = (401, 403), 400
_BRANCHING = ("begin_branch", "end_branch")
_READING = ("read_file", "list_files")
_LANGUAGE_OF_TOOL = {"run_python": Language.PYTHON, "run_javascript": Language.JAVASCRIPT}
# What hosts show to a model.
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
# The formats of a display that suit a model best, in this order. If there is none of these, it gets any other text.
_TEXTS = ("text/plain", "text/markdown")

Report = Callable[[OutputChunk], Awaitable[None]]


class ToolError(Exception):
    """A failure of a tool that the model cannot mend by other code or another path. The message is for the model."""


class Reply:
    """The answer of a tool to a model. With an `outcome`, it is the result of a program."""

    def __init__(self, *texts: str, outcome: str = "") -> None:
        self._outcome = outcome
        self._content: list[ContentBlock] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Add a text in lines of its own. It becomes part of the text before it, because some clients show a model only
        the first block of a result.
        """
        text = _sendable(cut_text(text, _MAX_TEXT_BYTES)[0])
        last = self._content[-1] if self._content else None
        if isinstance(last, TextContent):
            last.text += text if last.text.endswith("\n") or not text else f"\n{text}"
        elif text:
            self._content.append(TextContent(text=text))

    def add_block(self, block: ContentBlock) -> None:
        self._content.append(block)

    def to_result(self, *, is_error: bool = False) -> CallToolResult:
        if not self._content:
            self.add("(no output)")
        texts = [block.text for block in self._content if isinstance(block, TextContent)]
        structured = None
        # Some clients show a model only the structured content. So it has the whole text, and a result with images has
        # none. Others show only the text, which has the outcome of a failure.
        if self._outcome and len(texts) == len(self._content):
            structured = {"outcome": self._outcome, "output": "\n".join(texts)}
        return CallToolResult(content=self._content, structured_content=structured, is_error=is_error)


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
        self._manager, self._setup = manager, setup
        self._sessions: dict[Language, Session] = {}
        self._originals: list[Session] = []  # of the branches of Python that are open, the outermost first
        self._collectors: dict[Session, Collector] = {}
        self._lock = asyncio.Lock()  # so that two calls at once do not open two sessions

    @property
    def is_open(self) -> bool:
        return bool(self._sessions)

    async def call(self, tool: str, arguments: dict[str, Any], report: Report) -> Reply:
        """`report` gets the output of a program while it runs. Raise ToolError or FaasrtError if the tool fails."""
        if tool == "reset":
            await self.aclose()
            return Reply("Variables and files are gone. The next call begins anew.")
        if tool == "end_branch":
            return await self._end_branch(keeps=arguments["action"] == "keep")
        language = _LANGUAGE_OF_TOOL.get(tool) or Language(arguments.get("language", Language.PYTHON))
        async with self._session(language) as session:
            try:
                reply = await self._use(session, tool, arguments, report)
                if tool not in (*_READING, "begin_branch"):
                    await self._collect(session, reply)
                return reply
            except InvalidRequestError as error:
                return Reply(str(error))
            except RejectedError as error:
                if error.status in _UNAUTHORIZED:
                    raise
                reason = ": ".join(filter(None, (error.error, error.details)))
                return Reply(reason or _message(error))

    async def _use(self, session: Session, tool: str, arguments: dict[str, Any], report: Report) -> Reply:
        match tool:
            case "begin_branch":
                return await self._begin_branch(session)
            case "write_file":
                await session.write_files({arguments["path"]: _content_of(arguments)})
                return Reply(f"{arguments['path']} is written.")
            case "read_file":
                return await self._read_file(session, arguments["path"])
            case "list_files":
                lines = [f"{path} ({size:,} bytes)" for path, size in sorted((await session.list_files()).items())]
                return Reply("\n".join(lines) or "There are no files.")
            case _:
                return await self._run(session, arguments["code"], report)

    @contextlib.asynccontextmanager
    async def _session(self, language: Language) -> AsyncIterator[Session]:
        async with self._lock:
            if language not in self._sessions:
                self._sessions[language] = await self._open(language)
            session = self._sessions[language]
        try:
            yield session
        except SessionLostError as error:
            next_state = self._next_state(session) if session.lost_reason else _MAYBE_LOST
            raise ToolError(f"{_message(error)}\n{next_state}") from None
        finally:
            if session.lost_reason:  # the next call opens a new session
                self._forget(session)

    async def _open(self, language: Language) -> Session:
        setup = self._setup
        session = self._manager.session(language, sandbox=setup.sandbox, idle_timeout_s=setup.idle_s)
        await session.__aenter__()
        try:
            await self._send_files(session)
        except BaseException:
            await session.aclose()
            raise
        if setup.output is not None:
            self._collectors[session] = Collector(setup.output, language)
        return session

    async def _send_files(self, session: Session) -> None:
        try:
            for files in self._setup.parts:
                await session.write_files(files)
        except RejectedError as error:
            if error.status != _WRONG:  # otherwise, sessions of this language have no files there
                reason = error.details or _message(error)
                raise ToolError(f"The files of the user cannot be put into a session: {reason}") from None

    def _next_state(self, lost: Session) -> str:
        is_branch = self._originals and self._sessions.get(Language.PYTHON) is lost
        return _BRANCH_LOST if is_branch else _LOST

    def _forget(self, session: Session) -> None:
        """Leave out a session that has ended. If it is a branch, its original is used again."""
        if self._originals and self._sessions.get(Language.PYTHON) is session:
            self._sessions[Language.PYTHON] = self._originals.pop()
        self._sessions = {key: each for key, each in self._sessions.items() if each is not session}
        self._collectors.pop(session, None)

    async def _begin_branch(self, session: Session) -> Reply:
        branch = await session.fork()
        if self._sessions.get(Language.PYTHON) is not session:  # another call has changed it
            await branch.aclose()
            raise ToolError("The session has changed meanwhile: try again.")
        self._originals.append(session)
        self._sessions[Language.PYTHON] = branch
        return Reply("Python now runs in a branch. End it with end_branch, to keep or to drop its variables and files.")

    async def _end_branch(self, *, keeps: bool) -> Reply:
        if not self._originals:
            return Reply("There is no branch to end. begin_branch begins one.")
        original, branch = self._originals.pop(), self._sessions[Language.PYTHON]
        if not keeps:
            self._sessions[Language.PYTHON] = original
            await branch.aclose()
            return Reply("The branch is dropped. Variables and files are those from before begin_branch.")
        if (collector := self._collectors.pop(original, None)) is not None:
            self._collectors[branch] = collector
        await original.aclose()
        reply = Reply("The branch is kept: its variables and files are those of the session now.")
        async with self._session(Language.PYTHON) as session:
            await self._collect(session, reply)
        return reply

    async def _collect(self, session: Session, reply: Reply) -> None:
        # Those of a branch are collected when it is kept.
        if session in self._collectors and not session.lost_reason:
            limit = self._setup.sandbox.max_output_bytes
            for line in await self._collectors[session].collect(session, limit):
                reply.add(line)

    async def _run(self, session: Session, code: str, report: Report) -> Reply:
        async with session.stream_code(code) as run:
            async for chunk in run:
                await report(chunk)
        reply = _describe(run.result)
        if session.lost_reason:
            reply.add(f"The session has ended: {session.lost_reason}. {self._next_state(session)}")
        return reply

    async def _read_file(self, session: Session, path: str) -> Reply:
        check_path(path, "path")  # else the message is about a pattern
        content = (await session.read_files([glob.escape(path)])).get(path)
        if content is None:
            return Reply(f"There is no file {path!r}.")
        reply = Reply()
        mime_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        if mime_type in _IMAGES:
            reply.add_block(_image(content, mime_type))
            return reply
        with contextlib.suppress(UnicodeDecodeError):
            return Reply(content.decode() or "The file is empty.")
        encoded = base64.b64encode(content).decode()
        blob = BlobResourceContents(uri=f"file:///{quote(path)}", mime_type=mime_type, blob=encoded)
        reply.add_block(EmbeddedResource(resource=blob))
        return reply

    async def aclose(self) -> None:
        """End the sessions. The next call opens new ones."""
        # One after the other, so that a cancellation leaves those that have not ended.
        while self._originals:
            await self._originals.pop().aclose()
        for language in [*self._sessions]:
            if (session := self._sessions.pop(language, None)) is not None:
                self._collectors.pop(session, None)
                await session.aclose()


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
            return _failure(f"{type(error).__name__}: {_message(error)}")
        except Exception as error:  # the log must not have its message, which may quote the program
            frames = "".join(traceback.format_tb(error.__traceback__))
            log_error("a tool failed with %s, raised from:\n%s", type(error).__name__, frames, name="faasrt.mcp")
            return _failure("The tool failed. This is an error of the server, not of the code.")

    async def _call(self, context: ServerRequestContext[Any], tool: str, arguments: dict[str, Any]) -> Reply:
        numbers = itertools.count(1)

        async def report(chunk: OutputChunk) -> None:
            await context.session.report_progress(next(numbers), message=_sendable(chunk.text))

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


_LOST = "Its variables and files are lost. The next call begins anew."
_MAYBE_LOST = "The session may still be there: try again."
_BRANCH_LOST = (
    "It was a branch. The next call uses its original again, with the variables and files from before begin_branch."
)


def _describe(result: ExecutionResult) -> Reply:
    reply = Reply(result.stdout, result.stderr, outcome=result.outcome)
    error = result.error
    if error is not None and error.traceback:
        if error.traceback.strip() not in result.stderr:
            reply.add(error.traceback)
        reply.add(f"{result.outcome}: {error.name}")
    elif not result.ok:
        reply.add(f"{result.outcome}: {error.message}" if error else result.outcome)
    room = _MAX_TEXT_BYTES
    for number, display in enumerate(result.displays):
        text, image = _describe_display(display)
        room -= len(text.encode(errors="replace"))
        if room < 0 and number:
            reply.add(f"({len(result.displays) - number} further displays were left out)")
            break
        if image is not None:
            reply.add_block(image)
        reply.add(text)
    return reply


def _describe_display(display: Display) -> tuple[str, ImageContent | None]:
    omitted = [f"({name} was left out, because it exceeds the output limit)" for name in display.omitted]
    for mime_type in _IMAGES:
        if isinstance(image := display.data.get(mime_type), bytes):
            return "\n".join(omitted), _image(image, mime_type)
    texts = [display.data[name] for name in (*_TEXTS, *display.data) if isinstance(display.data.get(name), str)]
    return "\n".join([*map(str, texts[:1]), *omitted]), None


def _image(content: bytes, mime_type: str) -> ImageContent:
    return ImageContent(data=base64.b64encode(content).decode(), mime_type=mime_type)


def _sendable(text: str) -> str:
    """Replace lone surrogates, which a program may print."""
    return text.encode(errors="replace").decode()


def _message(error: FaasrtError) -> str:
    """Return the message without the endpoint, the attempts and their time, for which a model has no use."""
    return Exception.__str__(error)


def _failure(message: str) -> CallToolResult:
    return Reply(message).to_result(is_error=True)


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
        f"{_MAX_TEXT_BYTES:,} bytes is cut in the middle.{files}"
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
