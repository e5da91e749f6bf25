"""The settings of a runtime: frozen, validated, varied by `attrs.evolve`.

`RuntimeManager(settings=...)`, `RuntimeManager.local(settings=...)` and `RuntimeFactory(...)` take a `Settings`; its
fields `sandbox`, `limiter`, `retry`, `breaker` and `timeouts` hold the rest. `Settings.from_env(...)`, which
`RuntimeManager.from_env(...)` calls, reads the environment:

    COZE_LOOP_PYTHON_FAAS_URL              the FaaS of a language: one URL, or several replicas separated by commas;
                                           JavaScript and TypeScript have COZE_LOOP_JS_FAAS_URL
    COZE_LOOP_PYTHON_FAAS_DOMAIN, _PORT    the same, as coze-loop's deployments set it; likewise JS
    COZE_LOOP_FAAS_URL                     one FaaS for every language
    FAASRT_TOKEN                           sent as a bearer token, and the default of `faasrt serve --token`

The first that is set wins for a language; an explicit argument wins over all of them. The embedded FaaS keeps its
compiled Python sandbox in FAASRT_CACHE_DIR, by default `faasrt` in XDG_CACHE_HOME or ~/.cache.
"""

from __future__ import annotations

import os
import ssl as ssl_module
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypedDict, Unpack

import attrs
from attrs.validators import optional

from faasrt import _checks as checks
from faasrt._checks import instance_of, number, parse_base_url
from faasrt._record_type import RecordType
from faasrt.errors import ConfigurationError, shown
from faasrt.languages import Language

if TYPE_CHECKING:
    import aiohttp

EnvelopeMode = Literal["auto", "always", "never"]

_SECONDS = number(above=0, most=86_400)
_FAAS_OF_LANGUAGE = {Language.PYTHON: "PYTHON", Language.JAVASCRIPT: "JS", Language.TYPESCRIPT: "JS"}


@attrs.frozen(kw_only=True)
class SandboxConfig(metaclass=RecordType):
    """The limits that one execution lives under.

    Attributes:
        memory_limit_mb: Memory in MiB, from 1 to 65,536. Default: 128. The embedded FaaS needs 48 for Python, and 16
            for JavaScript and TypeScript.
        timeout_limit_s: Wall-clock seconds, above 0 and at most a day. Default: 30. It is the default and the ceiling
            of `timeout_ms`.
        max_output_bytes: UTF-8 bytes kept of each stream, from 1 to 1 GiB. Default: 1048576. Head and tail of a longer
            one stay, and `result.truncated` names it.
        network_enabled: Whether the code may reach the network. Default: False. Servers that cannot grant it refuse
            the call.

    Raises:
        ConfigurationError: A value is out of range, not finite, or a bool where a number belongs.

    Example:
        >>> sandbox = SandboxConfig(timeout_limit_s=0.2)
        >>> (await manager.run_code("while True: pass", "python", sandbox=sandbox)).outcome
        <Outcome.TIMEOUT: 'TIMEOUT'>
    """

    memory_limit_mb: int = attrs.field(default=128, validator=number(above=0, most=65_536, integer=True))
    timeout_limit_s: float = attrs.field(default=30.0, validator=_SECONDS)
    max_output_bytes: int = attrs.field(default=1_048_576, validator=number(above=0, most=2**30, integer=True))
    network_enabled: bool = attrs.field(default=False, validator=checks.flag)


@attrs.frozen(kw_only=True)
class TimeoutSettings(metaclass=RecordType):
    """The timeouts of a call, beside the sandbox's own limit.

    Attributes:
        connect_s: Seconds for DNS, TCP and TLS together. Default: 5.
        grace_s: Seconds that an attempt gets beyond `timeout_ms`, for the way there and back. Default: 2.
        startup_s: Seconds that it gets beyond that on a server which says that it starts an interpreter for each
            request, as python-faas does: 1.5 to 2 s, and more with several at once. Default: 10.
        health_s: Seconds for a health probe as a whole. Default: 5.
        close_s: Seconds that `aclose` waits for calls in flight before it cancels them. Default: 5.

    Example:
        >>> async with RuntimeManager.from_env(timeouts=TimeoutSettings(connect_s=1, grace_s=10)) as manager:
        ...     result = await manager.run_code("print(1)", "python")
    """

    connect_s: float = attrs.field(default=5.0, validator=_SECONDS)
    grace_s: float = attrs.field(default=2.0, validator=_SECONDS)
    startup_s: float = attrs.field(default=10.0, validator=_SECONDS)
    health_s: float = attrs.field(default=5.0, validator=_SECONDS)
    close_s: float = attrs.field(default=5.0, validator=_SECONDS)


@attrs.frozen(kw_only=True)
class LimiterSettings(metaclass=RecordType):
    """How many calls may be in flight at once.

    Attributes:
        max_concurrency: The most calls in flight per manager, from 1 to 100,000. Default: 256. Each endpoint has a
            limit of its own below that, which starts at the size that its health report tells (else 16), and follows
            how it does.
        max_queue: The most callers that may wait for a permit; the next one gets `QueueFullError`. Default: None, any
            number may wait.
        queue_timeout_s: The most seconds that a caller waits for a permit. Default: None, for as long as it takes.

    Example:
        >>> limiter = LimiterSettings(max_concurrency=8, queue_timeout_s=60)
        >>> async with RuntimeManager.from_env(limiter=limiter) as manager:
        ...     results = await asyncio.gather(*(manager.run_code(f"print({n})", "python") for n in range(20)))
        >>> all(result.ok for result in results)
        True
    """

    max_concurrency: int = attrs.field(default=256, validator=number(above=0, most=100_000, integer=True))
    max_queue: int | None = attrs.field(default=None, validator=optional(number(above=0, most=10**7, integer=True)))
    queue_timeout_s: float | None = attrs.field(default=None, validator=optional(_SECONDS))


@attrs.frozen(kw_only=True)
class RetrySettings(metaclass=RecordType):
    """When a failed call is tried again: at once elsewhere, later, or not at all.

    Attributes:
        idempotent: Whether programs may run more than once unless a call says otherwise. Default: False.
        max_attempts: Attempts of one call, the first included; 1 makes no retries. Default: 3.
        base_delay_s: Seconds of the first wait at most; it doubles with each attempt, and is taken at random from 0 on.
            Default: 0.05.
        max_delay_s: The longest wait, in seconds. Default: 2.
        throttled_base_delay_s: As `base_delay_s`, after a 429 or 503. Default: 1.
        throttled_max_delay_s: As `max_delay_s`, after a 429 or 503. Default: 20.
        max_retry_after_s: A server that asks for a longer wait than this is not waited for. Default: 30.
        budget: The size of the bucket that retries are paid from. Default: 50. Each family of languages has a bucket,
            shared by all callers of a factory.
        retry_cost: The tokens that a retry takes, at most `budget`. Default: 5.
        success_credit: The tokens that a success adds. Default: 1.

    Example:
        >>> from faasrt.testing import FakeFaas, Reply
        >>> async with FakeFaas() as fake:
        ...     fake.script(Reply.crash())
        ...     settings = Settings(endpoints={"python": fake.url}, retry=RetrySettings(idempotent=True))
        ...     async with RuntimeManager(settings=settings) as manager:
        ...         print((await manager.run_code("print(1)", "python")).attempts)
        2
    """

    idempotent: bool = attrs.field(default=False, validator=checks.flag)
    max_attempts: int = attrs.field(default=3, validator=number(above=0, most=100, integer=True))
    base_delay_s: float = attrs.field(default=0.05, validator=_SECONDS)
    max_delay_s: float = attrs.field(default=2.0, validator=_SECONDS)
    throttled_base_delay_s: float = attrs.field(default=1.0, validator=_SECONDS)
    throttled_max_delay_s: float = attrs.field(default=20.0, validator=_SECONDS)
    max_retry_after_s: float = attrs.field(default=30.0, validator=_SECONDS)
    budget: float = attrs.field(default=50.0, validator=number(above=0, most=1e9))
    retry_cost: float = attrs.field(default=5.0, validator=number(above=0, most=1e9))
    success_credit: float = attrs.field(default=1.0, validator=number(above=0, most=1e9))

    def __attrs_post_init__(self) -> None:
        if self.retry_cost > self.budget:
            raise ConfigurationError(
                f"retry_cost ({self.retry_cost:g}) must not be above budget ({self.budget:g}), or no retry is ever "
                "made; max_attempts=1 turns retries off"
            )


@attrs.frozen(kw_only=True)
class BreakerSettings(metaclass=RecordType):
    """When the circuit breaker of an endpoint opens, so that the endpoint gets no calls for a while.

    Attributes:
        consecutive_failures: The number of consecutive failures that opens it. Default: 5.
        min_success_rate: A smaller share of successes opens it too; above 0 and at most 1. Default: 0.8.
        window_s: The seconds over which the share is taken. Default: 30.
        min_calls: The least number of calls for which the share counts. Default: 20.
        base_open_s: Seconds for which it opens first; they double each time. Default: 5.
        max_open_s: The most seconds for which it opens. Default: 300.

    Example:
        >>> settings = Settings(
        ...     endpoints={"python": ["http://faas-1:8000", "http://faas-2:8000"]},
        ...     breaker=BreakerSettings(consecutive_failures=3, base_open_s=10),
        ... )
    """

    consecutive_failures: int = attrs.field(default=5, validator=number(above=0, most=1_000_000, integer=True))
    min_success_rate: float = attrs.field(default=0.8, validator=number(above=0, most=1))
    window_s: float = attrs.field(default=30.0, validator=_SECONDS)
    min_calls: int = attrs.field(default=20, validator=number(above=0, most=1_000_000, integer=True))
    base_open_s: float = attrs.field(default=5.0, validator=_SECONDS)
    max_open_s: float = attrs.field(default=300.0, validator=_SECONDS)


Endpoints: TypeAlias = Mapping[str, str | Sequence[str]] | Mapping[Language, str | Sequence[str]]


class SettingsOptions(TypedDict, total=False):
    """The fields of `Settings` as keyword arguments."""

    sandbox: SandboxConfig
    endpoints: Endpoints
    envelope: EnvelopeMode
    timeouts: TimeoutSettings
    limiter: LimiterSettings
    retry: RetrySettings
    breaker: BreakerSettings
    token: str | None
    headers: Mapping[str, str]
    ssl: ssl_module.SSLContext | bool | None
    proxy: str | None
    session: aiohttp.ClientSession | None


@attrs.frozen(kw_only=True)
class Settings(metaclass=RecordType):
    """Everything that a runtime, factory or manager needs to know.

    Attributes:
        sandbox: The limits of an execution.
        endpoints: For each language the base URLs of its FaaS replicas; a language without one is not supported here.
            Keys may be names ("py"), values a URL or several.
        envelope: Whether programs travel in an envelope that brings exact results back from servers that mangle them.
            "auto" asks each endpoint once what it is, by `GET /health`, and sends the envelope unless the endpoint
            calls itself lossless, as the embedded FaaS does. "always" sends it everywhere, "never" nowhere;
            `call_function` and `run_cases` cannot do without it. Default: auto.
        timeouts: The timeouts of a call.
        limiter: How many calls may be in flight.
        retry: When a failed call is tried again.
        breaker: When an endpoint is left out.
        token: Sent as `Authorization: Bearer ...` to every endpoint; `faasrt serve --token` requires one.
        headers: Headers of every request, for example for a gateway.
        ssl: An `ssl.SSLContext`, or False to accept any certificate; the default verification when None or True.
        proxy: The URL of an HTTP proxy for every request.
        session: An `aiohttp.ClientSession` of the caller, which is used for every request and never closed. By default
            each base URL has a session of its own.

    Raises:
        ConfigurationError: A URL, number or mode is wrong.
        UnsupportedLanguageError: A key of `endpoints` is no language.

    Example:
        >>> settings = Settings(endpoints={"py": "http://faas:8000/", "js": ["http://a:8000", "http://b:8000"]})
        >>> settings.endpoints[Language.PYTHON], settings.endpoints[Language.JAVASCRIPT]
        (('http://faas:8000',), ('http://a:8000', 'http://b:8000'))
        >>> import attrs
        >>> attrs.evolve(settings, sandbox=SandboxConfig(timeout_limit_s=5)).sandbox.timeout_limit_s
        5
    """

    sandbox: SandboxConfig = attrs.field(default=SandboxConfig(), validator=instance_of(SandboxConfig))
    endpoints: Mapping[Language, tuple[str, ...]] = attrs.field(factory=dict, converter=checks.endpoints, hash=False)
    envelope: EnvelopeMode = attrs.field(default="auto", validator=checks.one_of("auto", "always", "never"))
    timeouts: TimeoutSettings = attrs.field(default=TimeoutSettings(), validator=instance_of(TimeoutSettings))
    limiter: LimiterSettings = attrs.field(default=LimiterSettings(), validator=instance_of(LimiterSettings))
    retry: RetrySettings = attrs.field(default=RetrySettings(), validator=instance_of(RetrySettings))
    breaker: BreakerSettings = attrs.field(default=BreakerSettings(), validator=instance_of(BreakerSettings))
    token: str | None = attrs.field(default=None, repr=False, validator=checks.token)
    headers: Mapping[str, str] = attrs.field(factory=dict, converter=checks.headers, hash=False, repr=False)
    ssl: ssl_module.SSLContext | bool | None = attrs.field(default=None, validator=checks.ssl)
    proxy: str | None = attrs.field(default=None, converter=checks.proxy, repr=False)
    session: aiohttp.ClientSession | None = attrs.field(default=None, validator=checks.session)

    @classmethod
    def for_url(cls, url: str | Sequence[str] | Endpoints, **options: Unpack[SettingsOptions]) -> Self:
        """Make settings for one FaaS that serves every language, or for one of each language.

        Args:
            url: A base URL, several replicas, or a mapping of languages to these.
            **options: Fields of `Settings`.

        Raises:
            ConfigurationError: A URL or an option is wrong.
            TypeError: There is no such option.

        Example:
            >>> Settings.for_url("http://faas:8000", token="secret").endpoints[Language.TYPESCRIPT]
            ('http://faas:8000',)
        """
        if "endpoints" in options:
            raise ConfigurationError("give a URL or endpoints, not both")
        options["endpoints"] = url if isinstance(url, Mapping) else dict.fromkeys(Language, url)
        return cls(**options)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **options: Unpack[SettingsOptions]) -> Self:
        """Read the endpoints from the environment.

        For each language the first of these that is set wins: `COZE_LOOP_PYTHON_FAAS_URL` / `COZE_LOOP_JS_FAAS_URL`
        (one URL, or several separated by commas); `COZE_LOOP_PYTHON_FAAS_DOMAIN` + `_PORT` (likewise `JS`);
        `COZE_LOOP_FAAS_URL`. `FAASRT_TOKEN`, when set, is the bearer token.

        Args:
            environ: The variables; `os.environ` when None.
            **options: Fields of `Settings`, which take precedence over the environment.

        Raises:
            ConfigurationError: No variable is set, or one is malformed.
            TypeError: There is no such option.

        Source: the variable names are those of coze-loop's evaluation runtime and its deployments.

        Example:
            >>> settings = Settings.from_env({"COZE_LOOP_FAAS_URL": "http://a:8000, http://b:8000"}, envelope="never")
            >>> settings.endpoints[Language.TYPESCRIPT], settings.envelope
            (('http://a:8000', 'http://b:8000'), 'never')
        """
        if unknown := options.keys() - SettingsOptions.__annotations__.keys():
            raise TypeError(
                f"there is no setting {min(unknown)!r}; there are {', '.join(SettingsOptions.__annotations__)}"
            )
        variables = os.environ if environ is None else environ
        if not isinstance(variables, Mapping):
            raise ConfigurationError(f"environ must map names to strings, got {shown(variables)}")
        if "endpoints" not in options:
            endpoints = {language: _urls_from_env(variables, faas) for language, faas in _FAAS_OF_LANGUAGE.items()}
            if not any(endpoints.values()):
                raise ConfigurationError(
                    "no endpoint is configured: set COZE_LOOP_PYTHON_FAAS_URL and COZE_LOOP_JS_FAAS_URL (or their "
                    "_DOMAIN and _PORT forms), or COZE_LOOP_FAAS_URL for every language; or use the embedded FaaS "
                    "with RuntimeManager.local() or from_env(local_fallback=True)"
                )
            options["endpoints"] = endpoints
        if "token" not in options and variables.get("FAASRT_TOKEN"):
            options["token"] = variables["FAASRT_TOKEN"]
        return cls(**options)


def names_endpoints(variables: Mapping[str, str]) -> bool:
    """Return whether a variable is set that `Settings.from_env` reads endpoints from."""
    names = [f"COZE_LOOP_{faas}_FAAS_{part}" for faas in ("PYTHON", "JS") for part in ("URL", "DOMAIN", "PORT")]
    return any(_variable(variables, name) for name in [*names, "COZE_LOOP_FAAS_URL"])


def _variable(variables: Mapping[str, str], name: str) -> str:
    text = variables.get(name, "")
    if not isinstance(text, str):
        raise ConfigurationError(f"{name} must be a string, got {shown(text)}")
    return text.strip()


def _urls_from_env(variables: Mapping[str, str], faas: str) -> tuple[str, ...]:
    name = f"COZE_LOOP_{faas}_FAAS_URL"
    text = _variable(variables, name)
    if not text:
        domain = _variable(variables, f"COZE_LOOP_{faas}_FAAS_DOMAIN")
        port = _variable(variables, f"COZE_LOOP_{faas}_FAAS_PORT")
        if domain and port:
            name = f"COZE_LOOP_{faas}_FAAS_DOMAIN and _PORT"
            text = f"http://{domain}:{port}"
        elif domain or port:
            raise ConfigurationError(f"COZE_LOOP_{faas}_FAAS_DOMAIN and COZE_LOOP_{faas}_FAAS_PORT go together")
        else:
            name = "COZE_LOOP_FAAS_URL"
            text = _variable(variables, name)
    try:
        return tuple(parse_base_url(part) for part in text.split(",") if part.strip())
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None
