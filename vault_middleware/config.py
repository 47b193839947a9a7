"""The settings: one declaration a variable, from which the environment is read, checked and documented."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from . import parsing
from .errors import ConfigurationError

__all__ = ["VARIABLES", "SecretConfig", "Variable"]

T = TypeVar("T")

MASK: Final = "******"

METHODS: Final = ("kubernetes", "jwt", "approle", "token", "proxy")

_POSITIVE: Final = parsing.duration(zero=False)
_DURATION: Final = parsing.duration()


class Variable(NamedTuple):
    """One setting, as the environment and the documentation know it.

    Attributes
    ----------
    name, also
        The variable, and a second one that is read where the first is not set (or empty).
    field
        The name in :class:`SecretConfig`.
    default
        As text; empty where there is none.
    meaning
        One sentence for the documentation.
    secret
        Its value is never shown.
    blank
        Set but empty means "none" rather than "not set".
    parse
        From a text or a Python value to the value used; ``ValueError`` says what is accepted.
    """

    name: str
    also: str
    field: str
    default: str
    meaning: str
    secret: bool
    blank: bool
    parse: Callable[[object], object]


def _setting(
    parse: Callable[[object], T],
    default: str,
    meaning: str,
    *,
    shown: str | None = None,
    also: str = "",
    secret: bool = False,
    blank: bool = False,
    unset: Any = ...,
) -> T:
    """The field of one variable; its default is *default*, parsed, or *unset* where no text means it."""
    declared = {
        "parse": parse,
        "default": default if shown is None else shown,
        "meaning": meaning,
        "also": also,
        "secret": secret,
        "blank": blank,
    }
    value: T = field(default=parse(default) if unset is ... else unset, metadata=declared)
    return value


_file: Final = parsing.optional(parsing.file_path)
_pem: Final = parsing.optional(parsing.readable_file)
_credential: Final = parsing.optional(parsing.credential)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SecretConfig:
    """The settings, checked; durations are seconds.

    ``SecretConfig.from_env()`` reads the variables; ``SecretConfig(vault_addr=…, namespace=…)`` takes the same values
    as keywords, as text (``"5m"``) or as Python has them (``300``). It prints no credential.

    Raises
    ------
    ConfigurationError
        Something is wrong: it names every bad variable, what is wrong with it and what is accepted.
    """

    vault_addr: str = _setting(
        parsing.address,
        "http://vault.lotabots.svc:8200",
        "the server, or a local Vault or OpenBao Proxy: `http://…`, `https://…` or `unix://…`",
    )
    vault_role: str = _setting(parsing.text, "api-gateway", "the role at the auth method")
    namespace: str = _setting(
        parsing.namespace, "lotabots", "the leading segment of every secret path; empty for none", blank=True
    )
    auth_method: str = _setting(
        parsing.choice("", *METHODS),
        "",
        "`kubernetes`, `jwt`, `approle`, `token`, or `proxy` (a local proxy adds the token)",
        shown="kubernetes; token where VAULT_TOKEN or VAULT_TOKEN_FILE is set",
    )
    auth_mount: str = _setting(
        parsing.mount, "", "where the auth method is mounted, without `auth/`", shown="the method's name"
    )
    #: None: found out; empty: the root.
    auth_namespace: str | None = _setting(
        lambda value: None if value is None else parsing.namespace(value),
        "",
        "the namespace of the log-in; empty for the root",
        shown="found out",
        blank=True,
        unset=None,
    )
    kubernetes_token_path: str = _setting(
        parsing.file_path,
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "the service account's token, read again at every log-in",
    )
    jwt_path: str | None = _setting(_file, "", "the file with the token of the method `jwt`, read at every log-in")
    role_id: str | None = _setting(_credential, "", "the role id of the method `approle`", secret=True)
    secret_id: str | None = _setting(_credential, "", "the secret id of the method `approle`", secret=True)
    secret_id_file: str | None = _setting(
        _file, "", "the file with the secret id, read at every log-in, where VAULT_SECRET_ID is not set"
    )
    token: str | None = _setting(
        parsing.optional(parsing.token), "", "the token of the method `token`; never revoked", secret=True
    )
    token_file: str | None = _setting(_file, "", "the file with the token, where VAULT_TOKEN is not set")
    cacert: str | None = _setting(_pem, "", "TLS: the PEM file with the certificates to trust")
    capath: str | None = _setting(
        parsing.optional(parsing.folder), "", "TLS: the folder with the certificates to trust"
    )
    client_cert: str | None = _setting(_pem, "", "TLS: the client's certificate")
    client_key: str | None = _setting(_pem, "", "TLS: the key of the client's certificate")
    tls_server_name: str | None = _setting(
        parsing.optional(parsing.host), "", "TLS: the name that the server's certificate must bear"
    )
    skip_verify: bool = _setting(parsing.boolean, "false", "TLS: trust any certificate; warns")
    client_timeout: float = _setting(_POSITIVE, "5s", "the most that one request to the server may take")
    request_timeout: float = _setting(
        _POSITIVE, "10s", "the most that a getter may take in all: waiting, tries and body included"
    )
    max_retries: int = _setting(parsing.whole(0, 100), "2", "further tries of a read on 412, 429 and 5xx")
    rate_limit: tuple[float, int] | None = _setting(
        parsing.optional(parsing.rate_limit), "", "`rate[:burst]`: requests a second, and how many at once"
    )
    proxy_addr: str | None = _setting(
        parsing.optional(parsing.proxy), "", "the HTTP proxy on the way to the server", also="VAULT_HTTP_PROXY"
    )
    kv_version: int | None = _setting(
        parsing.optional(parsing.kv_version), "", "1 or 2: the version of every KV mount", shown="found out"
    )
    cache_ttl: float = _setting(_POSITIVE, "5m", "how long a static secret is fresh")
    cache_negative_ttl: float = _setting(_DURATION, "60s", 'how long "not found" is remembered')
    cache_stale_ttl: float = _setting(
        _DURATION, "1h", "how long past that a static secret may serve while Vault cannot answer"
    )
    cache_max_entries: int = _setting(parsing.whole(1, 10_000_000), "1024", "the most static secrets kept")
    prefetch: tuple[str, ...] = _setting(
        parsing.paths, "", "comma-separated paths fetched at start; `dynamic:` may stand in front of a leased one"
    )
    startup: str = _setting(
        parsing.choice("eager", "lazy"), "eager", "`eager`: log in and prefetch before serving; `lazy`: at first use"
    )
    startup_timeout: float = _setting(_POSITIVE, "30s", "how long an eager start keeps trying before it fails")
    max_leases: int = _setting(
        parsing.whole(1, 1_000_000), "256", "the most live leases of this process; three quarters of them in one folder"
    )
    lease_min_validity: float = _setting(
        _DURATION, "1s", "a leased value with less left is not handed out: it is replaced first"
    )
    lease_idle_ttl: float = _setting(
        _DURATION, "0", "stop renewing a lease that no request has read for so long; 0: never"
    )
    shutdown_timeout: float = _setting(_DURATION, "5s", "the time for revoking at stop")
    audit_log: str = _setting(
        parsing.audit_log,
        "stderr",
        "`stderr`, `stdout`, a file's path, `logging` (the logger `vault_middleware.audit`), or `off`",
    )
    audit_mode: str = _setting(
        parsing.choice("strict", "buffered"),
        "strict",
        "`strict`: the line is written before the value is returned; `buffered`: within 100 ms",
    )
    allowed_paths: tuple[str, ...] = _setting(
        parsing.globs, "", "comma-separated globs of the paths that may be read at all; `*` spans slashes", shown="all"
    )

    def __post_init__(self) -> None:
        given = {variable.field: getattr(self, variable.field) for variable in VARIABLES}
        values, problems = _check(given, {each.field: f"{each.name} ({each.field})" for each in VARIABLES})
        del given  # a traceback that prints local variables must print no credential
        if problems:
            raise _wrong(problems)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> SecretConfig:
        """The settings of the environment; variables that are not known are ignored.

        Raises
        ------
        ConfigurationError
            As for the class.
        """
        given: dict[str, object] = {}
        names: dict[str, str] = {}
        for variable in VARIABLES:
            names[variable.field] = variable.name
            for name in filter(None, (variable.name, variable.also)):
                text = environ.get(name)
                if text is not None and (text.strip() or variable.blank):
                    given[variable.field], names[variable.field] = text, name
                    break
        values, problems = _check(given, names)
        del environ, given
        if problems:
            del values
            raise _wrong(problems)
        return cls(**values)

    def warnings(self) -> list[str]:
        """What is allowed but unwise, each with what to do about it."""
        found = []
        address = urlsplit(self.vault_addr)
        if address.scheme == "http" and not _is_loopback(address.hostname or ""):
            found.append(
                f"VAULT_ADDR is plain http to {address.hostname}: tokens and secrets cross the network readable; "
                "use https://, or a proxy on the same host"
            )
        if self.skip_verify:
            found.append(
                "VAULT_SKIP_VERIFY is on: whoever answers is taken for Vault; unset it, and trust your authority by "
                "VAULT_CACERT"
            )
        return found

    def __repr__(self) -> str:
        shown = []
        for variable in VARIABLES:
            value = getattr(self, variable.field)
            if value is not None and variable.secret:
                value = MASK
            elif isinstance(value, str) and variable.field == "proxy_addr":
                value = re.sub(r"//.*@", f"//{MASK}@", value)
            shown.append(f"{variable.field}={value!r}")
        return f"SecretConfig({', '.join(shown)})"

    def __copy__(self) -> SecretConfig:
        return self

    def __deepcopy__(self, _memo: object) -> SecretConfig:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.role_id or self.secret_id or self.token or "@" in (self.proxy_addr or ""):
            raise TypeError(
                "a SecretConfig with a credential cannot be pickled, so that none leaves the process by accident; "
                "build it from the environment over there"
            )
        return object.__reduce_ex__(self, protocol)


def _name_of(name: str) -> str:
    return name.upper() if name.startswith("vault_") else f"VAULT_{name.upper()}"


#: Every variable, in the order of the documentation.
VARIABLES: Final = tuple(
    Variable(name=_name_of(each.name), field=each.name, **each.metadata) for each in fields(SecretConfig)
)


def _wrong(problems: list[str]) -> ConfigurationError:
    return ConfigurationError("\n  ".join(["the configuration is wrong:", *problems]))


def _check(given: Mapping[str, object], names: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The values that *given* (field to text or value) comes to, and what is wrong, each under its name in *names*."""
    values: dict[str, Any] = {each.name: each.default for each in fields(SecretConfig)}
    problems: dict[str, str] = {}
    for variable in VARIABLES:
        if variable.field in given:
            problem = None
            try:
                values[variable.field] = variable.parse(given[variable.field])
            except ValueError as error:
                problem = str(error)
            if problem is not None:
                problems[variable.field] = problem
    bad = frozenset(problems)
    method = values["auth_method"] or ("token" if values["token"] or values["token_file"] else "kubernetes")
    values["auth_method"] = method
    values["auth_mount"] = values["auth_mount"] or method
    problems |= {
        name: problem
        for name, involved, problem in _contradictions(values)
        if bad.isdisjoint((*involved, name, "auth_method"))
    }
    return values, [f"{names[name]}: {problem}" for name, problem in problems.items()]


def _contradictions(values: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], str]]:
    """What is wrong between settings: the field to name, the others that it hangs on, and the problem."""
    found: list[tuple[str, tuple[str, ...], str]] = []
    method = values["auth_method"]
    if method == "jwt" and not values["jwt_path"]:
        found.append(("jwt_path", (), "the method jwt needs it; give the path of the file with the token"))
    if method == "approle" and not values["role_id"]:
        found.append(("role_id", (), "the method approle needs it; give the role's id"))
    if method == "token" and not values["token"] and not values["token_file"]:
        found.append(("token", ("token_file",), "the method token needs it; set it, or VAULT_TOKEN_FILE to its file"))
    if values["client_key"] and not values["client_cert"]:
        found.append(("client_cert", ("client_key",), "VAULT_CLIENT_KEY needs it; give the certificate's PEM file too"))
    globs = values["allowed_paths"]
    refused = [path for path in values["prefetch"] if globs and not any(fnmatchcase(path, glob) for glob in globs)]
    if refused:
        found.append(
            (
                "prefetch",
                ("allowed_paths",),
                f"{refused[0][:80]!r} is not permitted by VAULT_ALLOWED_PATHS; add it there",
            )
        )
    return found


def _is_loopback(host: str) -> bool:
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
