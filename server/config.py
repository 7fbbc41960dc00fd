"""Every setting of the server, in one frozen dataclass. Flags override the environment, then the file, then defaults.

The options of the command line, the NUMBA_ADAM_* variables and the keys of the TOML file all come from the fields of
`ServerConfig`, so a new setting is written in one place. Imports the standard library, the error tree and the sizes.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import logging
import math
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from numba_adam.errors import ConfigurationError
from numba_adam.server.logs import LEVELS
from numba_adam.server.memory import parse_size, usable_bytes

_log = logging.getLogger(__name__)
_OF_CLIENTS = (
    "server_ca",
    "worker_certificate",
    "worker_key",
    "server_name",
    "token",
    "transport",
)  # variables that clients read
ENVIRONMENT_PREFIX = "NUMBA_ADAM_"
_CHOICES = {
    **dict.fromkeys(("loopback_token", "health_token"), ("required", "off")),
    "opentelemetry": ("on", "off"),
    "log_format": ("text", "json"),
    "log_level": LEVELS,
}
_SMALLEST_BUDGET_BYTES = 1 << 20
_LARGEST_BUDGET_BYTES = 1 << 62  # what a status answer can hold
_MOST_CALLS = 1 << 30  # gRPC's limit
_LONGEST_SECONDS = 1e6  # eleven days: gRPC's and the system's timers can hold it in milliseconds
_SMALLEST_MESSAGE_BYTES = 1 << 21  # clients send chunks of about 1 MiB
_LARGEST_MESSAGE_BYTES = (1 << 31) - 1  # gRPC's own limit
_SMALLEST_WINDOW_BYTES = 1 << 18  # with half a MiB, attacks came near the memory that is promised for small budgets
_LARGEST_WINDOW_BYTES = 1 << 26  # unless it is set: enough for 600 MB/s over a line with a round trip of 100 ms
_WINDOWS_SHARE = 4  # of the budget, for the windows of all calls
WAITING_CALLS = 128
"""Calls that are admitted and not served yet: they wait for their first message or for a permit."""


def _setting(default: Any, text: str, minimum: float | None = None, maximum: float = math.inf) -> Any:
    """Return a field with its explanation, which is also its --help text."""
    maximum = min(maximum, _LONGEST_SECONDS) if isinstance(default, float) else maximum
    return field(default=default, metadata={"help": text, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings of a server.

    Raises:
        ConfigurationError: a value is out of range, of the wrong type, or unsafe.
    """

    listen: str = _setting(
        "127.0.0.1:50051",
        "address to serve on, as HOST:PORT; port 0 takes a free one. Addresses other than "
        "loopback need TLS and tokens.",
    )
    tls_certificate: Path | None = _setting(  # noqa: RUF009 - a field
        None,
        "PEM file with the server's certificate, then those of intermediate CAs; turns TLS on. "
        "'numba-adam certificate' makes one. The server uses a changed file without a restart.",
    )
    tls_key: Path | None = _setting(None, "PEM file with the key of that certificate; mode 600.")  # noqa: RUF009 - a field
    client_ca: Path | None = _setting(  # noqa: RUF009 - a field
        None, "PEM file with the CAs of workers; only clients with a certificate of theirs are served (mutual TLS)."
    )
    loopback_token: str = _setting(
        "off",
        "on a loopback address: 'required': every call needs a token. Clients of the server's user find one by "
        "themselves; others need one of 'numba-adam token'. 'off': none does, and every user of this machine may use "
        "the server; the next release changes the default to 'required'. Other addresses always need tokens.",
    )
    metrics_listen: str | None = _setting(
        None,
        "address for Prometheus's scrapes of /metrics, as HOST:PORT, such as 127.0.0.1:9464; needs prometheus_client. "
        "An address other than loopback needs TLS, and scrapes of it a token.",
    )
    opentelemetry: str = _setting(
        "off",
        "'on': gRPC's plugin measures the calls, and the OpenTelemetry SDK sends that by OTLP over HTTP to where its "
        "own variables say (OTEL_EXPORTER_OTLP_ENDPOINT); needs the extra opentelemetry.",
    )
    log_format: str = _setting("text", "the log on stderr: 'text', or 'json' with one object in each line.")
    log_level: str = _setting("info", "what the log has: 'debug' (each push too), 'info', 'warning' or 'error'.")
    health_token: str = _setting(
        "required",
        "where calls need a token: 'required': health checks need one too; 'off': anyone who reaches the address may "
        "ask whether the server serves, and learns nothing else.",
    )
    data_dir: Path = _setting(Path("numba-adam-data"), "folder for snapshots; created if it does not exist.")  # noqa: RUF009 - a field
    snapshot_key_file: Path | None = _setting(  # noqa: RUF009 - a field
        None,
        "file with keys, mode 600, outside the data folder: all that decides the state of models gets a tag that only "
        "its holders can make, and nothing without a valid tag is used. 'numba-adam snapshot-key' makes one.",
    )
    memory_dir: Path = _setting(  # noqa: RUF009 - a field
        Path("/dev/shm"),
        "folder on a file system in memory, for models whose pushes survive any end of the server's process; without "
        "such a folder, the data folder is used.",
    )
    memory_budget_bytes: int = _setting(
        0,
        "the most memory that models and transfers may hold, in bytes or with a unit (8GiB, 512MiB); 0 means half of "
        "the memory that the machine or this process's control group has.",
        0,
        _LARGEST_BUDGET_BYTES,
    )
    snapshot_interval_seconds: float = _setting(
        60.0, "seconds between snapshots of a model that changes; 0 turns the timer off.", 0
    )
    snapshot_every_pushes: int = _setting(1000, "pushes to a model between its snapshots; 0 turns that off.", 0)
    snapshots_kept: int = _setting(3, "snapshots kept of each model.", 2)
    threads: int = _setting(
        0,
        "threads that apply a large update; 0 means all that Numba has: one for each processor, or NUMBA_NUM_THREADS. "
        "A larger number means all too, and the log says so. While small models are pushed or pulled, one processor "
        "stays free for them.",
        0,
    )
    rpc_threads: int = _setting(64, "calls served at the same time.", 4, _MOST_CALLS)
    most_connections: int = _setting(1024, "largest number of connections; fewer if the limit of open files is low.", 1)
    largest_message_bytes: int = _setting(
        4 << 20,
        "size of the largest gRPC message that is accepted, in bytes or with a unit (16MiB).",
        _SMALLEST_MESSAGE_BYTES,
        _LARGEST_MESSAGE_BYTES,
    )
    receive_window_bytes: int = _setting(
        0,
        "what each call may have on its way that the server has not read yet, in bytes or with a unit (64MiB). A push "
        "over a long line moves about that much, and 2 MiB more, in each round trip. All calls together may hold it "
        "--rpc-threads + 128 times, beyond the budget. 0 means a quarter of the budget for all of them, between "
        "256 KiB and 64 MiB for each.",
        0,
        _LARGEST_MESSAGE_BYTES,
    )
    stop_deadline_seconds: float = _setting(
        5.0, "seconds for calls in flight to finish after a signal to stop; the models are saved first.", 0
    )
    stall_seconds: float = _setting(
        60.0,
        "seconds in which a transfer must move 1 MiB or finish; a slower one is ended, and may be retried.",
        0.01,
    )
    keepalive_seconds: float = _setting(
        30.0, "seconds of silence until a connection is pinged; it is closed if no answer comes.", 1
    )

    def __post_init__(self) -> None:
        """Check every field."""
        for item, kind in _kinds():
            object.__setattr__(self, item.name, _check(item, kind, getattr(self, item.name)))
        host_and_port(self.listen)
        if self.metrics_listen is not None:
            host_and_port(self.metrics_listen, "metrics_listen")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                words = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
                raise ConfigurationError(f"{name}={getattr(self, name)!r}: it must be {words}")
        if not self.is_local and (self.tls_certificate is None or self.tls_key is None):
            raise ConfigurationError(
                f"listen={self.listen!r}: other machines could reach this address, so it needs TLS "
                "(--tls-certificate and --tls-key) and tokens. Make them with: numba-adam certificate ca, then "
                f"numba-adam certificate server HOST, then numba-adam token make NAME --admin '*' --data-dir "
                f"{self.data_dir}. Or listen on 127.0.0.1"
            )
        if not self.metrics_are_local and (self.tls_certificate is None or self.tls_key is None):
            raise ConfigurationError(
                f"metrics_listen={self.metrics_listen!r}: other machines could reach this address, so it needs TLS "
                "(--tls-certificate and --tls-key) and tokens; docs/metrics.md has the steps. Or listen on 127.0.0.1"
            )
        if not self.memory_budget_bytes:
            object.__setattr__(self, "memory_budget_bytes", usable_bytes() // 2)
        if self.memory_budget_bytes < _SMALLEST_BUDGET_BYTES:
            raise ConfigurationError(
                f"memory_budget_bytes={self.memory_budget_bytes}: it must be at least {_SMALLEST_BUDGET_BYTES}"
            )

    @property
    def most_calls(self) -> int:
        """Largest number of calls that are open at a time."""
        return self.rpc_threads + WAITING_CALLS

    @property
    def window_bytes(self) -> int:
        """The flow-control window of each call."""
        share = self.memory_budget_bytes // _WINDOWS_SHARE // self.most_calls
        chosen = self.receive_window_bytes or min(share, _LARGEST_WINDOW_BYTES)
        return max(chosen, _SMALLEST_WINDOW_BYTES)

    @property
    def is_local(self) -> bool:
        """Whether other machines cannot reach the server."""
        host, _ = host_and_port(self.listen)
        return is_loopback(host.removeprefix("[").removesuffix("]"))

    @property
    def metrics_are_local(self) -> bool:
        """Whether other machines cannot reach the metrics."""
        return self.metrics_listen is None or is_loopback(
            host_and_port(self.metrics_listen, "metrics_listen")[0].removeprefix("[").removesuffix("]")
        )

    @property
    def metrics_need_token(self) -> bool:
        """Whether scrapes of the metrics need a token."""
        return not self.metrics_are_local or self.loopback_token == "required"

    @property
    def requires_tokens(self) -> bool:
        """Whether every call needs a token."""
        return not self.is_local or self.loopback_token == "required"


def host_and_port(listen: str, setting: str = "listen") -> tuple[str, int]:
    """Return host and port of an address to listen on. An IPv6 address keeps its brackets.

    Args:
        listen: the address.
        setting: name of the setting, for error messages.

    Raises:
        ConfigurationError: it is not HOST:PORT.
    """
    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{setting}={listen!r}: it must be HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051")
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare and host != f"[{bare}]":
        raise ConfigurationError(
            f"{setting}={listen!r}: an IPv6 address needs brackets, which separate it from the port; write "
            f"[{bare}]:{port}"
        )
    if ":" not in bare and host != bare:
        raise ConfigurationError(f"{setting}={listen!r}: brackets are for IPv6 addresses; write {bare}:{port}")
    return host, int(port)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one option for each setting, and --config."""
    parser.add_argument(
        "--config", metavar="FILE", default=None, help="TOML file with settings; keys as the options, with underscores."
    )
    defaults = {item.name: "none" if item.default is None else item.default for item in fields(ServerConfig)}
    for item, kind in _kinds():
        parser.add_argument(
            f"--{item.name.replace('_', '-')}",
            metavar=_metavar(item, kind),
            default=argparse.SUPPRESS,
            help=f"{item.metadata['help']} Default: {defaults[item.name]}",
        )


def load(namespace: argparse.Namespace, environ: Mapping[str, str]) -> ServerConfig:
    """Return the settings. Flags override NUMBA_ADAM_* variables, then the TOML file, then the defaults.

    An unknown NUMBA_ADAM_* variable causes a warning, not an error: Kubernetes sets such variables for a service of
    that name.

    Args:
        namespace: from a parser that `add_arguments` has extended.
        environ: such as os.environ.

    Raises:
        ConfigurationError: an invalid value, or an unknown key in the file.
    """
    file = getattr(namespace, "config", None) or environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    values = _read_file(_path("config", file)) if file else {}
    _warn_of_strange_variables(environ)
    for item, kind in _kinds():
        variable = _variable(item.name)
        if variable in environ:
            values[item.name] = _parse(variable, item, kind, environ[variable])
        if hasattr(namespace, item.name):
            values[item.name] = _parse(f"--{item.name.replace('_', '-')}", item, kind, getattr(namespace, item.name))
    return ServerConfig(**values)


def _warn_of_strange_variables(environ: Mapping[str, str]) -> None:
    """Warn of each unknown variable that looks like a setting, and suggest the closest setting."""
    own = [item.name for item in fields(ServerConfig)]
    known = [_variable(name) for name in ("config", "quiet", *own, *_OF_CLIENTS)]
    for name in sorted(environ):
        if name.upper().startswith(ENVIRONMENT_PREFIX) and name not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"the variables are {', '.join(known)}"
            _log.warning("%s: there is no such setting, it is ignored; %s", name[:200], advice)


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def _kinds() -> list[tuple[Field[Any], type]]:
    """Return each field with its type; None, for a file that need not be set, is no type of its own."""
    hints = get_type_hints(ServerConfig)
    return [(item, (get_args(hints[item.name]) or (hints[item.name],))[0]) for item in fields(ServerConfig)]


def _metavar(item: Field[Any], kind: type) -> str:
    if kind is Path:
        return "DIR" if item.name.endswith("_dir") else "FILE"
    if item.name in _CHOICES:
        return "|".join(_CHOICES[item.name])
    return "BYTES" if _is_size(item) else {int: "N", float: "SECONDS", str: "HOST:PORT"}[kind]


def _is_size(item: Field[Any]) -> bool:
    return item.name.endswith("_bytes")


def _parse(source: str, item: Field[Any], kind: type, text: str) -> Any:
    """Return a setting's value from its text."""
    if kind is Path:
        return _path(source, text)
    try:
        return parse_size(text) if _is_size(item) else kind(text)
    except ValueError as error:
        raise ConfigurationError(f"{source}={text!r}: it must be {_noun(item, kind)}") from error


def _path(source: str, text: str) -> Path:
    """Return a path with ~ expanded, which no shell does in a file or a variable.

    An empty path is refused: it would mean the current folder.
    """
    if not text:
        raise ConfigurationError(f"{source}={text!r}: it must be a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"{source}={text!r}: it must be a path, and its ~ names no home folder") from error


def _check(item: Field[Any], kind: type[Any], value: Any) -> Any:
    """Return a setting, converted to its type.

    Raises:
        ConfigurationError: the type is wrong, or the value is out of range.
    """
    if value is None and item.default is None:
        return None
    if kind is Path and isinstance(value, str):
        value = _path(item.name, value)
    if _is_size(item) and isinstance(value, str):
        value = _parse(item.name, item, kind, value)
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigurationError(f"{item.name}={value!r}: it must be {_noun(item, kind)}")
    minimum: float | None = item.metadata["minimum"]
    if minimum is not None and not value >= minimum:
        raise ConfigurationError(f"{item.name}={value!r}: it must be at least {minimum}")
    maximum: float = item.metadata["maximum"]
    if minimum is not None and value > maximum:
        raise ConfigurationError(f"{item.name}={value!r}: it must be at most {maximum:.0f}")
    return value


def _noun(item: Field[Any], kind: type) -> str:
    if _is_size(item):
        return "a whole number of bytes, or a number with a unit (KiB, MiB, GiB, TiB, kB, MB, GB, TB), such as 8GiB"
    return {int: "a whole number", float: "a number", Path: "a path", str: "a text"}[kind]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"config={str(path)!r}: it must be a readable TOML file ({error})") from error
    known = [item.name for item in fields(ServerConfig)]
    strange = sorted(set(values) - set(known))
    if strange:
        raise ConfigurationError(f"config={str(path)!r} sets {strange[0]!r}: the settings are {', '.join(known)}")
    return values


def is_loopback(host: str) -> bool:
    """Return whether a host, a number or "localhost", is unreachable from other computers."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
