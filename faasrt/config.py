"""The settings: frozen and validated. `attrs.evolve` makes a changed copy.

`RuntimeManager(settings=...)`, `RuntimeManager.local(settings=...)` and `RuntimeFactory(...)` take a `Settings`, whose
fields `sandbox`, `limiter`, `retry`, `breaker` and `timeouts` are the other classes of this module.
`Settings.from_env(...)`, which `RuntimeManager.from_env(...)` calls, reads the environment variables in
`faasrt/docs/configuration.md`.
"""

from __future__ import annotations

import os
import ssl as ssl_module
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypedDict, Unpack, get_args

import attrs
from attrs.validators import optional

from faasrt import _setting_checks as checks
from faasrt._attribute_docs import list_attributes
from faasrt._endpoint_urls import DISCOVERY, may_run
from faasrt._setting_checks import Endpoints, parse_urls
from faasrt.discovery import DiscoverySettings
from faasrt.errors import ConfigurationError, safe_repr
from faasrt.languages import Language, has_return_val

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "BreakerSettings",
    "LimiterSettings",
    "RetrySettings",
    "SandboxConfig",
    "Settings",
    "TimeoutSettings",
]

EnvelopeMode: TypeAlias = Literal["auto", "always", "never"]
# The jail of the embedded FaaS, and its engines.
Level: TypeAlias = Literal["auto", "namespaces", "users", "filters"]
EngineName: TypeAlias = Literal["native", "wasm", "deno", "gcc", "g++", "go", "rustc", "java", "bash"]

_SECONDS = checks.positive(86_400)
# coze-loop has variables for these languages only.
_FAAS_OF_LANGUAGE = {Language.PYTHON: "PYTHON", Language.JAVASCRIPT: "JS", Language.TYPESCRIPT: "JS"}


@list_attributes
@attrs.frozen(kw_only=True)
class SandboxConfig:
    """The limits of one execution.

    Raises:
        ConfigurationError: A value is out of range, not finite, or a bool instead of a number.

    Example:
        >>> sandbox = SandboxConfig(timeout_limit_s=0.2)
        >>> (await manager.run_code("while True: pass", "python", sandbox=sandbox)).outcome
        <Outcome.TIMEOUT: 'TIMEOUT'>
    """

    memory_limit_mb: int = attrs.field(default=128, validator=checks.whole(1, 65_536))
    """Memory in MiB, from 1 to 65,536. Default: 128. The embedded FaaS needs 16, or 48 for Python unless the engine
    `native` is chosen."""
    timeout_limit_s: float = attrs.field(default=30.0, validator=_SECONDS)
    """Seconds, above 0 and at most a day. Default: 30. It is both the default and the maximum of `timeout_ms`. The
    embedded FaaS does not count the time for which a program waits for a CPU."""
    max_output_bytes: int = attrs.field(default=1_048_576, validator=checks.whole(1, 2**30))
    """The maximum size of each output stream in UTF-8 bytes, from 1 to 1 GiB. Default: 1048576. A longer stream is cut
    to its head and tail, and `result.truncated` names it."""
    network_enabled: bool = attrs.field(default=False, validator=checks.flag)
    """Whether the code may use the network. Default: False. The embedded FaaS refuses calls with True."""


@list_attributes
@attrs.frozen(kw_only=True)
class TimeoutSettings:
    """The timeouts of a call, in addition to the time limit of the sandbox.

    Example:
        >>> async with RuntimeManager.from_env(timeouts=TimeoutSettings(connect_s=1, grace_s=10)) as manager:
        ...     result = await manager.run_code("print(1)", "python")
    """

    connect_s: float = attrs.field(default=5.0, validator=_SECONDS)
    """Seconds to connect: DNS, TCP and TLS in total. Each look-up of a `dns+` URL may take this long, too. Default:
    5."""
    grace_s: float = attrs.field(default=2.0, validator=_SECONDS)
    """Seconds that an attempt may take beyond `timeout_ms`, for the network and the server. Default: 2."""
    startup_s: float = attrs.field(default=10.0, validator=_SECONDS)
    """Further seconds on a server that starts an interpreter for each request, such as python-faas, where this takes
    1.5 to 2 s, or longer under load; and for the compiler of a SandboxFusion or Piston server. Default: 10."""
    health_s: float = attrs.field(default=5.0, validator=_SECONDS)
    """Seconds for a health probe, from the connection to the end of the answer. Default: 5."""
    close_s: float = attrs.field(default=5.0, validator=_SECONDS)
    """Seconds that `aclose` waits for calls in flight before it cancels them. Default: 5."""


@list_attributes
@attrs.frozen(kw_only=True)
class LimiterSettings:
    """The limits on calls in flight, and on calls that wait for a permit to be sent.

    Example:
        >>> limiter = LimiterSettings(max_concurrency=8, queue_timeout_s=60)
        >>> async with RuntimeManager.from_env(limiter=limiter) as manager:
        ...     results = await asyncio.gather(*(manager.run_code(f"print({n})", "python") for n in range(20)))
        >>> all(result.ok for result in results)
        True
    """

    max_concurrency: int = attrs.field(default=256, validator=checks.whole(1, 100_000))
    """The maximum number of calls in flight per manager, from 1 to 100,000. Default: 256. Each endpoint also has an
    adaptive limit, which starts at the capacity in its health report, or else at 16 and then doubles until the first
    refusal or timeout."""
    max_queue: int | None = attrs.field(default=None, validator=optional(checks.whole(1, 10_000_000)))
    """The maximum number of calls that wait for a permit, from 1 to 10,000,000; further calls raise `QueueFullError`.
    Default: None, which means no limit."""
    queue_timeout_s: float | None = attrs.field(default=None, validator=optional(_SECONDS))
    """The maximum number of seconds that a call waits for a permit; then it raises `DeadlineExceededError` with `sent`
    "no", or the error of an endpoint if all are down. The first call to an endpoint may wait for `health_s` longer.
    Default: None, which means no limit."""


@list_attributes
@attrs.frozen(kw_only=True)
class RetrySettings:
    """Whether, when and how often a failed call is retried.

    Example:
        >>> from faasrt.testing import FakeFaaS, Reply
        >>> async with FakeFaaS() as fake:
        ...     fake.script(Reply.crash())
        ...     settings = Settings(endpoints={"python": fake.url}, retry=RetrySettings(idempotent=True))
        ...     async with RuntimeManager(settings=settings) as manager:
        ...         print((await manager.run_code("print(1)", "python")).attempts)
        2
    """

    idempotent: bool = attrs.field(default=False, validator=checks.flag)
    """Whether programs may run more than once; each call can override this. Default: False."""
    max_attempts: int = attrs.field(default=3, validator=checks.whole(1, 100))
    """The maximum number of attempts per call, from 1 (no retries) to 100. Default: 3. A call that was refused by one
    endpoint, and can go to another one, may make 6 further attempts. Attempts that find an endpoint down do not count;
    `connect_retry_s` bounds them."""
    connect_retry_s: float = attrs.field(default=30.0, validator=checks.number(0, 86_400))
    """The seconds for which a call waits for endpoints that are down, from 0 to 86400. Default: 30. An endpoint is down
    if it cannot be reached, or refuses calls with 503 because it starts or stops. The call is retried with growing
    delays, without a limit of attempts. While every circuit breaker is open, it waits until a probe closes one. A call
    does not wait if `max_attempts` is 1, nor for an endpoint whose certificate is not accepted, or that does not speak
    TLS. With 0, calls to endpoints that are down fail after `max_attempts` attempts."""
    base_delay_s: float = attrs.field(default=0.05, validator=_SECONDS)
    """The maximum delay before the first retry, in seconds. It doubles for each further retry. The actual delay is
    random, between 0 and this maximum. Default: 0.05. After a 429 or 503, it is 20 times as long."""
    max_delay_s: float = attrs.field(default=2.0, validator=_SECONDS)
    """The maximum delay before any retry, in seconds. Default: 2. After a 429 or 503, it is 10 times as long."""
    max_retry_after_s: float = attrs.field(default=30.0, validator=_SECONDS)
    """The maximum `Retry-After` in seconds. A call is not retried if the server asks for a longer delay. Default:
    30."""


@list_attributes
@attrs.frozen(kw_only=True)
class BreakerSettings:
    """When the circuit breaker of an endpoint opens, so that the endpoint gets no calls for a while.

    Example:
        >>> settings = Settings(
        ...     endpoints={"python": ["http://faas-1:8000", "http://faas-2:8000"]},
        ...     breaker=BreakerSettings(consecutive_failures=3, base_open_s=10),
        ... )
    """

    consecutive_failures: int = attrs.field(default=5, validator=checks.whole(1, 1_000_000))
    """The number of consecutive failures that opens the breaker. Default: 5."""
    min_success_rate: float = attrs.field(default=0.8, validator=checks.positive(1))
    """A success rate below this opens it too; above 0 and at most 1. Default: 0.8."""
    window_s: float = attrs.field(default=30.0, validator=_SECONDS)
    """The seconds over which the success rate is measured. Default: 30."""
    min_calls: int = attrs.field(default=20, validator=checks.whole(1, 1_000_000))
    """The minimum number of calls in the window for the success rate to count. Default: 20."""
    base_open_s: float = attrs.field(default=5.0, validator=_SECONDS)
    """The seconds for which the breaker is open the first time; they double each time. Default: 5."""
    max_open_s: float = attrs.field(default=300.0, validator=_SECONDS)
    """The maximum number of seconds for which it is open. Default: 300."""


class NoEndpointError(ConfigurationError):
    """No variable of the environment names an endpoint."""


class SettingsOptions(TypedDict, total=False):
    sandbox: SandboxConfig
    endpoints: Endpoints
    envelope: EnvelopeMode
    timeouts: TimeoutSettings
    limiter: LimiterSettings
    retry: RetrySettings
    breaker: BreakerSettings
    discovery: DiscoverySettings
    token: str | None
    headers: Mapping[str, str]
    ssl: ssl_module.SSLContext | bool | None
    proxy: str | None
    http_session: aiohttp.ClientSession | None


@list_attributes
@attrs.frozen(kw_only=True)
class Settings:
    """The settings of a runtime, factory or manager.

    Raises:
        ConfigurationError: A URL, number or mode is wrong.
        UnsupportedLanguageError: A key of `endpoints` is not a supported language.

    Example:
        >>> settings = Settings(endpoints={"py": "http://faas:8000/", "js": ["http://a:8000", "http://b:8000"]})
        >>> settings.endpoints[Language.PYTHON], settings.endpoints[Language.JAVASCRIPT]
        (('http://faas:8000',), ('http://a:8000', 'http://b:8000'))
        >>> import attrs
        >>> attrs.evolve(settings, sandbox=SandboxConfig(timeout_limit_s=5)).sandbox.timeout_limit_s
        5
    """

    sandbox: SandboxConfig = attrs.field(default=SandboxConfig(), validator=checks.instance_of(SandboxConfig))
    """The limits of an execution."""
    endpoints: Mapping[Language | str, tuple[str, ...]] = attrs.field(
        factory=dict, converter=checks.endpoints, hash=False
    )
    """The base URLs of the FaaS replicas for each language. Keys may be names such as "py"; values may be one URL,
    several that are separated by commas, or a sequence of URLs. A language without a URL is not supported. Keys may be
    any language if all their URLs are of other protocols than coze-loop's. Default: no endpoints."""
    envelope: EnvelopeMode = attrs.field(default="auto", validator=checks.one_of(*get_args(EnvelopeMode)))
    """Whether a program is sent in an envelope: a small program that runs it and returns its exact results, which
    python-faas and js-faas do not; see `faasrt.protocol`. "auto" sends it unless the endpoint's `GET /health`,
    requested once, reports a lossless server, such as the embedded FaaS. "always" sends it to every endpoint, and
    "never" to none. `call_function` and `run_cases` need it, and ignore this setting. Default: auto."""
    timeouts: TimeoutSettings = attrs.field(default=TimeoutSettings(), validator=checks.instance_of(TimeoutSettings))
    """The timeouts of a call."""
    limiter: LimiterSettings = attrs.field(default=LimiterSettings(), validator=checks.instance_of(LimiterSettings))
    """The limits on calls in flight."""
    retry: RetrySettings = attrs.field(default=RetrySettings(), validator=checks.instance_of(RetrySettings))
    """Whether, when and how often a failed call is retried."""
    breaker: BreakerSettings = attrs.field(default=BreakerSettings(), validator=checks.instance_of(BreakerSettings))
    """When the circuit breaker of an endpoint opens."""
    discovery: DiscoverySettings = attrs.field(
        default=DiscoverySettings(), validator=checks.instance_of(DiscoverySettings)
    )
    """How often the names in `dns+` URLs are looked up."""
    token: str | None = attrs.field(default=None, repr=False, validator=checks.token)
    """The bearer token for every endpoint, which `faasrt serve --token` requires. Default: None, no token."""
    headers: Mapping[str, str] = attrs.field(factory=dict, converter=checks.headers, hash=False, repr=False)
    """Headers for every request, for example for a gateway; without `Authorization` if there is a token."""
    ssl: ssl_module.SSLContext | bool | None = attrs.field(default=None, validator=checks.ssl)
    """An `ssl.SSLContext`, or False to accept any certificate. Default: None, which verifies certificates as usual; so
    does True."""
    proxy: str | None = attrs.field(default=None, converter=checks.proxy, repr=False)
    """The URL of an HTTP proxy for every request, but for those to an embedded FaaS; not with `dns+` URLs. Default:
    None, no proxy."""
    http_session: aiohttp.ClientSession | None = attrs.field(default=None, validator=checks.http_session)
    """Your own `aiohttp.ClientSession` for every request, which is never closed; not with `dns+` URLs. The limit of its
    connector (aiohttp's default: 100 connections) also limits the calls in flight, to one less. If your application
    uses the session too, a call may wait for a connection. This wait counts towards the deadline of the call, but not
    towards `connect_s`. Default: None, which opens one for each endpoint, without a limit."""

    def __attrs_post_init__(self) -> None:
        if self.token is not None and any(name.lower() == "authorization" for name in self.headers):
            raise ConfigurationError("headers must not contain Authorization together with a token, which sets it")
        if self.proxy is not None or self.http_session is not None:
            for url in (url for urls in self.endpoints.values() for url in urls if url.startswith(DISCOVERY)):
                chooser = "proxy" if self.proxy is not None else "http_session"
                raise ConfigurationError(f"{chooser} must be None with {url}, because it chooses the address itself")

    @classmethod
    def from_url(cls, url: str | Sequence[str] | Endpoints, **options: Unpack[SettingsOptions]) -> Self:
        """Return settings for one FaaS that serves every language, or for a FaaS for each language.

        A service such as SandboxFusion gets only the languages that it lists.

        Args:
            url: A base URL, the URLs of several replicas as a sequence or separated by commas, or a mapping of
                languages to these.
            **options: Fields of `Settings`.

        Raises:
            ConfigurationError: A URL or an option is wrong.
            TypeError: An option is unknown.

        Example:
            >>> Settings.from_url("http://faas:8000", token="secret").endpoints[Language.TYPESCRIPT]
            ('http://faas:8000',)
        """
        if "endpoints" in options:
            raise ConfigurationError("pass url or endpoints, not both")
        options["endpoints"] = url if isinstance(url, Mapping) else dict.fromkeys(Language, url)
        settings = cls(**options)
        if isinstance(url, Mapping):
            return settings
        return attrs.evolve(settings, endpoints=_listed(settings.endpoints))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **options: Unpack[SettingsOptions]) -> Self:
        """Read the endpoints and the token from the environment.

        `faasrt/docs/configuration.md` lists the variables, and says which one counts.

        Args:
            environ: The variables. Default: None, which means `os.environ`.
            **options: Fields of `Settings`, which take precedence over the environment.

        Raises:
            ConfigurationError: No variable is set, or one is malformed.
            TypeError: An option is unknown.

        Source: coze-loop's evaluation runtime and its deployments use these variable names.

        Example:
            >>> settings = Settings.from_env({"COZE_LOOP_FAAS_URL": "http://a:8000, http://b:8000"}, envelope="never")
            >>> settings.endpoints[Language.TYPESCRIPT], settings.envelope
            (('http://a:8000', 'http://b:8000'), 'never')
        """
        if unknown := options.keys() - SettingsOptions.__annotations__.keys():
            raise TypeError(
                f"unknown setting {min(unknown)!r}; the settings are {', '.join(SettingsOptions.__annotations__)}"
            )
        variables = os.environ if environ is None else environ
        if not isinstance(variables, Mapping):
            raise ConfigurationError(f"environ must map names to strings, got {safe_repr(variables)}")
        if "endpoints" not in options:
            endpoints = _listed({lang: _urls_from_env(variables, _FAAS_OF_LANGUAGE.get(lang)) for lang in Language})
            if not any(endpoints.values()):
                raise NoEndpointError(
                    "no endpoint is configured: set COZE_LOOP_PYTHON_FAAS_URL and COZE_LOOP_JS_FAAS_URL (or their "
                    "_DOMAIN and _PORT forms), or COZE_LOOP_FAAS_URL for every language; or use the embedded FaaS "
                    "with RuntimeManager.local() or from_env(local_fallback=True)"
                )
            options["endpoints"] = endpoints
        if "token" not in options and variables.get("FAASRT_TOKEN"):
            options["token"] = variables["FAASRT_TOKEN"]
        return cls(**options)


def _listed(endpoints: Mapping[Language | str, tuple[str, ...]]) -> dict[Language | str, tuple[str, ...]]:
    return {
        language: tuple(url for url in urls if has_return_val(language) or may_run(url, language))
        for language, urls in endpoints.items()
    }


def _variable(variables: Mapping[str, str], name: str) -> str:
    text = variables.get(name, "")
    if not isinstance(text, str):
        raise ConfigurationError(f"{name} must be a string, got {safe_repr(text)}")
    return text.strip()


def _urls_from_env(variables: Mapping[str, str], faas: str | None) -> tuple[str, ...]:
    name = "COZE_LOOP_FAAS_URL" if faas is None else f"COZE_LOOP_{faas}_FAAS_URL"
    text = _variable(variables, name)
    if not text and faas is not None:
        domain = _variable(variables, f"COZE_LOOP_{faas}_FAAS_DOMAIN")
        port = _variable(variables, f"COZE_LOOP_{faas}_FAAS_PORT")
        if domain and port:
            name = f"COZE_LOOP_{faas}_FAAS_DOMAIN and _PORT"
            text = f"http://{domain}:{port}"
        elif domain or port:
            raise ConfigurationError(f"set COZE_LOOP_{faas}_FAAS_DOMAIN and COZE_LOOP_{faas}_FAAS_PORT, or neither")
        else:
            name = "COZE_LOOP_FAAS_URL"
            text = _variable(variables, name)
    try:
        return parse_urls(text) if text else ()
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None
