"""Settings of the service: flags before environment (JINGYIN_SERVE_*) before a YAML file.

Which address may face whom. A loopback address or a Unix socket: this machine, without keys if it has no strangers. A
public address: the gateways, by keys, which /metrics and /v2 need there too; the probes, the page and the OpenAPI
document need none. No address of the service belongs on the Internet.
"""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from jingyin.model.errors import ConfigError
from jingyin.serve.http.memory import BurstSettings, ConversationSettings

PREFIX = "JINGYIN_SERVE_"


class Settings(BaseSettings):
    """Everything that can be set; milliseconds, bytes and seconds as the names say."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    uds: Path | None = None
    """Listen on this Unix socket instead of TCP."""
    bundle: Path | None = None
    """The bundle to serve, by default the one in the package; read again on reload."""
    shadow: Path | None = None
    """A bundle that scores beside the deployed one, is counted, and never answers."""
    keys: Path | None = None
    """File of hashed API keys, see keys.py; without it everyone who can connect may ask. Emptied or deleted: no key is
    known, and nobody may."""
    allow_open: bool = False
    """Allow a public address without keys."""
    page: bool = True
    """Serve the page for people at /."""
    workers: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=lambda: min(4, len(os.sched_getaffinity(0))))
    """Processes that score, by default one a core and at most four; limits of requests and queues are each one's."""
    log_requests: Literal["all", "errors"] = "errors"

    deadline_ms: Annotated[int, Field(ge=1, le=60_000)] = 50
    """From arrival to answer, unless a request names its own."""
    on_deadline: Literal["pass", "review", "block"] = "pass"
    """The action for a message that could not be scored in time; pass fails open, block fails closed."""
    wait_ms: Annotated[float, Field(ge=0, le=3)] = 1.0
    """Longest wait for company under load; a lone message never waits."""
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = 2_048
    """Messages that may wait; beyond it 503 at once."""
    max_texts: Annotated[int, Field(ge=1, le=10_000)] = 1_024
    max_body: Annotated[int, Field(ge=1_024, le=64 << 20)] = 1 << 20
    max_requests: Annotated[int, Field(ge=1)] = 256
    """Most requests under way at a time; admission.py allows fewer when answers are late. Beyond it 503 at once."""
    max_connections: Annotated[int, Field(ge=1)] = 4_096
    read_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Longest time for a client to send one request."""
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    """After SIGTERM, longest time to answer what was taken."""

    burst: BurstSettings | None = None
    """Hold what is only suspicious when it comes in bulk, see burst.py; off by default."""
    conversations: ConversationSettings | None = None
    """Read the messages of one conversation as one text too, see conversation.py; off by default."""

    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_key_password: SecretStr | None = None
    tls_client_ca: Path | None = None
    """Ask clients for a certificate signed by this authority."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        errors = []
        if self.is_public and not self.keys and not self.allow_open:
            errors.append("host is a public address and there is no key file: set keys, or allow_open if that is meant")
        if bool(self.tls_certificate) != bool(self.tls_key):
            errors.append("tls_certificate and tls_key go together: set both or none")
        if self.tls_client_ca and not self.tls_certificate:
            errors.append("tls_client_ca needs tls_certificate and tls_key")
        if self.queue < self.max_texts:
            errors.append("queue is smaller than max_texts: the largest request would always be refused")
        if errors:
            raise ValueError("; ".join(errors))
        return self

    @property
    def is_public(self) -> bool:
        """Whether other machines can connect."""
        return not self.uds and not _is_loopback(self.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(config: Path | None = None, **flags: Any) -> Settings:  # noqa: ANN401  fields of Settings
    """Read the settings; flags that are None count as not given. Raises ConfigError that lists all errors."""
    given = {name: value for name, value in flags.items() if value is not None}
    names = [name[len(PREFIX) :] for name in os.environ if name.startswith(PREFIX)]
    if unknown := sorted(name for name in names if name.lower() not in Settings.model_fields):
        raise ConfigError(f"unknown settings in the environment: {', '.join(PREFIX + name for name in unknown)}")
    try:
        return Settings(**{**_from_file(config), **EnvSettingsSource(Settings)(), **given})
    except ValidationError as error:
        raise ConfigError(f"the settings of `jingyin serve` are wrong: {_faults(error)}") from None


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        path.open("rb").close()  # the source passes over a file that is not there
        return YamlConfigSettingsSource(Settings, path, yaml_file_encoding="utf-8")()
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} can't be read as YAML names with values ({type(error).__name__}); see configs/serve.yaml"
        ) from None


def _faults(error: ValidationError) -> str:
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, f["loc"])), f["msg"]))) for f in errors)
