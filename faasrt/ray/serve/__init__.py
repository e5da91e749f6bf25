r"""The embedded FaaS as an application of Ray Serve: autoscaled replicas behind one URL.

Needs the extra `ray`, and the extra `local` on the nodes. Each replica has an embedded FaaS of its own, which uses as
many CPUs as the replica has in Ray. From a shell:

    FAASRT_TOKEN=secret serve run faasrt.ray.serve:app workers=4 max_replicas=20

In a configuration file for `serve deploy`:

    applications:
      - name: faasrt
        import_path: faasrt.ray.serve:app
        args: {workers: 4, max_replicas: 20}
        deployments:
          - {name: faasrt, graceful_shutdown_timeout_s: 60}

Then the environment of the nodes needs FAASRT_TOKEN, because Ray Serve shows the configuration. The deployment has the
name `faasrt`, and every option of Ray Serve can be changed in this way. Clients need the token, and the URL with the
application's `route_prefix`.

**Autoscaling.** A replica is added when, for five seconds, more programs run or wait than the replicas have workers.
Until it has started, a program waits in its replica for at most 20 s (`queue_timeout_s`), and is then refused with 429
and `x-faasrt-not-started: 1`, so that the client sends it again. This wait counts for the deadline of the call, so
clients with time limits below 20 s need `TimeoutSettings(grace_s=22)`. Clients do not know the number of replicas: they
start with 16 calls at once, and send more or fewer depending on the answers. If a replica has 16 times as many requests
as workers, further ones wait in Ray Serve. A replica that Ray Serve stops finishes its programs first.

**Differences to `faasrt serve`.** The output of a program arrives at its end, even with `stream_code`, because Ray
Serve would keep all output that a slow client has not read. `/metrics` has the metrics of one replica; Ray Serve has
metrics of its own. If a replica dies, its programs end, their calls fail with `ServerError`, and Ray Serve starts
another replica. A call that Ray Serve has not delivered to the replica yet goes to another one.

**Settings of Ray Serve.** Do not set `request_timeout_s` below the time limit of programs: the answer of Ray Serve is a
408, which is a `ServerError`. Ray Serve reads the whole body of a request before any check, so put a gateway that
limits bodies in front of it if strangers can reach it. It has no TLS by default.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from yarl import URL

from faasrt.config import SandboxConfig
from faasrt.errors import ConfigurationError, safe_repr
from faasrt.local.sandbox_limits import LIMIT_NAMES
from faasrt.local.server import LocalFaaS

__all__ = ["app"]

# Headers that are not passed on to the FaaS. `Accept` could ask for live output.
_NOT_SENT = {"accept", "connection", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
# Headers of its answers that are not passed on, because the web server sets them.
_NOT_RETURNED = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}
_UPSCALE_DELAY_S = 5.0
# Long enough for a new replica to start.
_QUEUE_TIMEOUT_S = 20.0
# The most requests at a replica, per worker. They include health probes, which must not wait.
_MAX_REQUESTS = 16
# Shorter than the keep-alive of the FaaS, so that the FaaS does not close a connection that is about to be used.
_KEEP_ALIVE_S = 4.0
# How long a replica has to end, after the last program has ended.
_CLOSE_S = 10.0
# `serve run` passes each argument as text.
_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "token": str,
    "workers": int,
    "min_replicas": int,
    "max_replicas": int,
    "languages": lambda text: text.split(","),
    "timeout_limit_s": float,
    "memory_limit_mb": int,
    "max_output_bytes": int,
    "queue_timeout_s": float,
    "level": str,
    "engines": lambda text: dict(part.split("=") for part in text.split(",")),
    "python": str,
}


def app(args: Mapping[str, Any]) -> serve.Application:
    r"""Return an application for `serve.run`, `serve run` and `serve deploy`.

    Args:
        args: A mapping with these keys, all of which but the token are optional; `serve run` sets them as `KEY=VALUE`.

            token: The token that clients must send. Default: the environment variable FAASRT_TOKEN.
            workers: The number of CPUs of a replica, in Ray and for its programs, from 1 to 256. Default: 2.
            min_replicas, max_replicas: The limits of autoscaling. Default: 1 and 100.
            timeout_limit_s, memory_limit_mb, max_output_bytes: The limits of every program; see `SandboxConfig`. A
                request can only lower them. Without these keys, it can also raise them; see `LocalFaaS`.
            queue_timeout_s: How long a program may wait in its replica, in seconds. Default: 20.
            languages, level, engines, python: See `LocalFaaS`. As text, `languages` is like "js,ts", and `engines` like
                "python=wasm".

    Raises:
        ConfigurationError: There is no token, a key is unknown, or a value is wrong.

    Example:
        >>> from ray import serve
        >>> import faasrt.ray.serve
        >>> handle = serve.run(faasrt.ray.serve.app({"token": "secret", "workers": 1, "max_replicas": 3}))
        >>> async with RuntimeManager.from_url("http://127.0.0.1:8000", token="secret") as manager:
        ...     results = [await manager.run_code(code, "python") for code in ("print(6 * 7)", "1 / 0")]
        >>> [(str(result.outcome), result.stdout) for result in results]
        [('OK', '42\n'), ('USER_ERROR', '')]
    """
    options = {name: _convert(name, value) for name, value in args.items()}
    token = options.setdefault("token", os.environ.get("FAASRT_TOKEN"))
    if not token:
        raise ConfigurationError("the application needs a token: set FAASRT_TOKEN, or the argument token")
    least, most = options.pop("min_replicas", 1), options.pop("max_replicas", 100)
    if not isinstance(least, int) or least < 0:
        raise ConfigurationError(f"min_replicas must be a whole number from 0, got {safe_repr(least)}")
    if not isinstance(most, int) or most < max(1, least):
        raise ConfigurationError(f"max_replicas must be a whole number from {max(1, least)}, got {safe_repr(most)}")
    limits = {name: options.pop(name) for name in LIMIT_NAMES if name in options}
    options = {"workers": 2, "queue_timeout_s": _QUEUE_TIMEOUT_S, **options}
    if limits:
        options["sandbox"] = SandboxConfig(**limits)
    longest_s = LocalFaaS(**options).max_sandbox.timeout_limit_s  # raises ConfigurationError
    workers = options["workers"]
    deployment = serve.deployment(
        name="faasrt",
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": workers,
            "upscale_delay_s": _UPSCALE_DELAY_S,
        },
        ray_actor_options={"num_cpus": workers},
        max_ongoing_requests=_MAX_REQUESTS * workers,
        graceful_shutdown_timeout_s=longest_s + _CLOSE_S,
    )(ServedFaaS)
    return deployment.bind(options)


def _convert(name: str, value: Any) -> Any:
    if name not in _CONVERTERS:
        raise ConfigurationError(f"there is no argument {safe_repr(name)}, only {', '.join(_CONVERTERS)}")
    if not isinstance(value, str):
        return value
    try:
        return _CONVERTERS[name](value)
    except ValueError:
        raise ConfigurationError(f"{name} has a wrong value: {safe_repr(value)}") from None


class ServedFaaS:
    """A replica: passes requests on to its own embedded FaaS. `options` are options of `LocalFaaS`."""

    async def __init__(self, options: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._resources = contextlib.AsyncExitStack()
        self._faas = await self._resources.enter_async_context(LocalFaaS(**options))
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._session = await self._resources.enter_async_context(session)
        for language in self._faas.languages:
            if language.has_return_val:
                await self._faas.wait_ready(language)

    async def __call__(self, request: Request) -> Response:
        """Return the answer of the FaaS. Cancellation, when the client disconnects, ends the program."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
        headers = [(name, value) for name, value in request.headers.items() if name not in _NOT_SENT]
        async with self._session.request(
            request.method,
            URL(self._faas.url).with_path(path),
            headers=headers,
            data=None if request.method in ("GET", "HEAD") else request.stream(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
        if path == "/health" and answer.status in (200, 503):
            body = _describe_application(body)
        returned = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_RETURNED}
        return Response(body, answer.status, returned)

    async def check_health(self) -> None:
        """Raise RuntimeError if no program can run here. Ray Serve then replaces this replica."""
        headers = {"Authorization": f"Bearer {self._faas.token}"}
        async with self._session.get(f"{self._faas.url}/health", headers=headers) as answer:
            if answer.status != 200:
                raise RuntimeError("no engine of the embedded FaaS is ready")

    async def __del__(self) -> None:
        await self._resources.aclose()


def _describe_application(body: bytes) -> bytes:
    """Return a health report that holds for all replicas together."""
    health = json.loads(body)
    if "languages" in health:
        health["capabilities"]["streams"] = False
        for state in health["languages"].values():
            for name in ("capacity", "active", "idle", "queued"):
                state.pop(name, None)
    return json.dumps(health).encode()
