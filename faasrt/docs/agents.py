r'''Tools for agents: an MCP server, and tools for the OpenAI Agents SDK, pydantic-ai, LangChain and smolagents.

A model that works in steps needs an interpreter that stays: `faasrt mcp` and the tools below give each agent a session
(`faasrt.docs.sessions`), so variables, imports and files live on between its calls.

## The MCP server

`faasrt mcp` (extra `mcp`) offers these tools to a host of MCP, the Model Context Protocol:

| tool | what it does |
|---|---|
| `run_python`, `run_javascript` | runs code, and returns its output, the value of its last expression, and images |
| `write_file` | writes a file for the code; binary content is in Base64 |
| `read_file` | returns a file as text, as an image, or as a resource |
| `list_files` | lists the files, with their sizes |
| `reset` | forgets all variables and files |

* Each client has sessions of its own, one for each language. They begin with the first call, and end with the client,
  or when they are not used for `--idle-s`. Each language has its own folder: the tools for files take
  `language="javascript"`.
* Figures of matplotlib, and objects with `_repr_png_`, are images. A display that exceeds `--output-bytes` is named.
  Text above 40,000 bytes is cut in the middle, and displays above it are left out.
* If the code fails, the result is its traceback, and `isError` is true. At `--timeout-s`, the code is interrupted, and
  its variables are kept. If the session ends, for example because it exceeds `--memory-mb`, the result says so.
* If the client cancels a call, the code is interrupted. While it runs, its output is reported as progress.
* Programs run in the embedded FaaS. `--url`, or the variables of the environment, name another FaaS. It must have
  sessions, as `faasrt serve` does. `--engine python=wasm` chooses an engine.

### Hosts

Most hosts read the same JSON. If the host does not find `faasrt`, write its full path (`which faasrt`):

    {"mcpServers": {"faasrt": {"command": "faasrt", "args": ["mcp", "--memory-mb", "1024"]}}}

| host | file |
|---|---|
| Claude Desktop | `claude_desktop_config.json`, which Settings, Developer, Edit Config opens |
| Claude Code | `.mcp.json` in the project; or run `claude mcp add faasrt -- faasrt mcp` |
| Cursor | `.cursor/mcp.json` in the project, or `~/.cursor/mcp.json` |
| Gemini CLI | `.gemini/settings.json` in the project, or `~/.gemini/settings.json` |
| VS Code | `.vscode/mcp.json`, with `servers` in place of `mcpServers`, and `"type": "stdio"` |
| Codex | `~/.codex/config.toml`, as TOML; or run `codex mcp add faasrt -- faasrt mcp` |

For VS Code:

    {"servers": {"faasrt": {"type": "stdio", "command": "faasrt", "args": ["mcp"]}}}

For Codex:

    [mcp_servers.faasrt]
    command = "faasrt"
    args = ["mcp"]

### Over HTTP

`faasrt mcp --http 127.0.0.1:8900` serves any number of clients at `http://127.0.0.1:8900/mcp` (streamable HTTP). Like
`faasrt serve`, it refuses requests of web pages and for unknown hosts. An address that other machines can reach needs
`--token`, or the variable FAASRT_MCP_TOKEN, and a proxy with TLS before it. For Claude Code:

    claude mcp add --transport http faasrt http://127.0.0.1:8900/mcp --header "Authorization: Bearer TOKEN"

For Cursor, and with `servers` in place of `mcpServers` for VS Code:

    {"mcpServers": {"faasrt": {"type": "http", "url": "http://127.0.0.1:8900/mcp",
                               "headers": {"Authorization": "Bearer TOKEN"}}}}

MCP has no sessions over HTTP since its version 2026-07-28. The first result for such a client names a session, and the
model passes this name to further calls as the argument `session`.

## Tools in Python

Without MCP, a tool is a function that runs code in a session. The model needs the outcome, the output, and the values
that are displayed:

```python
import asyncio

from faasrt import ExecutionResult, RuntimeManager


def describe(result: ExecutionResult) -> str:
    return "\n".join([result.outcome, result.stdout, result.stderr, *(shown.text for shown in result.displays)])


async def main() -> None:
    async with RuntimeManager.local(["python"]) as manager, manager.session("python") as session:
        for code in ("x = 41", "print('x is', x)\nx + 1", "x / 0"):
            print(describe(await session.run_code(code)))


asyncio.run(main())
```

```text
OK


OK
x is 41


42
USER_ERROR

Traceback (most recent call last):
...
ZeroDivisionError: division by zero

```

Each function below answers one question with a session of its own. Share one manager between all of them.

### OpenAI Agents SDK

    from agents import Agent, Runner, function_tool

    async def answer(manager: RuntimeManager, question: str) -> str:
        async with manager.session("python") as session:

            @function_tool
            async def run_python(code: str) -> str:
                """Run Python code. Variables and files are kept between calls."""
                return describe(await session.run_code(code))

            agent = Agent(name="Analyst", model=model, tools=[run_python])
            return (await Runner.run(agent, question)).final_output

### pydantic-ai

    from faasrt import Session
    from pydantic_ai import Agent, RunContext

    agent = Agent(model, deps_type=Session)

    @agent.tool
    async def run_python(context: RunContext[Session], code: str) -> str:
        """Run Python code. Variables and files are kept between calls."""
        return describe(await context.deps.run_code(code))

    async def answer(manager: RuntimeManager, question: str) -> str:
        async with manager.session("python") as session:
            return (await agent.run(question, deps=session)).output

### LangChain

    from langchain.agents import create_agent
    from langchain.tools import tool

    async def answer(manager: RuntimeManager, question: str) -> str:
        async with manager.session("python") as session:

            @tool
            async def run_python(code: str) -> str:
                """Run Python code. Variables and files are kept between calls."""
                return describe(await session.run_code(code))

            agent = create_agent(model, tools=[run_python])
            state = await agent.ainvoke({"messages": [{"role": "user", "content": question}]})
            return state["messages"][-1].content

### smolagents

Its tools are not asynchronous, so this uses `faasrt.sync.RuntimeManager`:

    from smolagents import ToolCallingAgent, tool

    def answer(manager: faasrt.sync.RuntimeManager, question: str) -> str:
        with manager.session("python") as session:

            @tool
            def run_python(code: str) -> str:
                """Run Python code. Variables and files are kept between calls.

                Args:
                    code: The code.
                """
                return describe(session.run_code(code))

            return ToolCallingAgent(tools=[run_python], model=model).run(question)
'''  # noqa: D214

__docformat__ = "markdown"
