"""Settings of the service: flags before environment (JINGYIN_SERVE_*) before a YAML file.

A loopback address or a Unix socket serves this machine, without keys unless a key file is named. A public address
serves the gateways, by keys, which /metrics needs there too; probes, the page and /openapi.json need none. No address
of the service belongs on the Internet.
"""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from jingyin.model.errors import ConfigError, faults_of

PREFIX = "JINGYIN_SERVE_"
REMEMBERED = ("state", "state_secret", "senders", "on_memory_timeout", "conversations", "burst", "policy")
"""Settings that SIGHUP reads again."""

TargetRate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Risk = Annotated[float, Field(gt=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SenderSettings(_Part):
    """How long a sender or contact is suspected, and the risk from which its messages are then held."""

    seconds: Annotated[float, Field(gt=0, le=30 * 86_400)] = 86_400.0
    risk: Risk = 0.05


class ConversationSettings(_Part):
    """How long messages are kept."""

    seconds: Annotated[float, Field(gt=0, le=600)] = 600.0


class BurstSettings(_Part):
    """When suspicious messages sent in bulk are held."""

    risk: Risk = 0.2
    """The least risk of a message that is counted and may be held."""
    count: Annotated[int, Field(ge=1)] = 20
    """Near-copies in the window above which it is held."""
    window_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0


class CaseSettings(_Part):
    """Which messages are kept for analysts, where, and how many."""

    database: Annotated[str, Field(pattern="^postgresql://.+$")] | None = Field(default=None, repr=False)
    """postgresql://USER:PASSWORD@HOST/NAME for several machines; by default cases.sqlite next to the known wordings."""
    days: Annotated[float, Field(gt=0, le=365)] = 7.0
    """How long an undecided case is kept after its last message, and texts, senders and receivers of any case."""
    cases: Annotated[int, Field(ge=1)] = 100_000
    """Most undecided cases; the least harmful make room."""
    texts: Annotated[int, Field(ge=1, le=20)] = 5
    """Most different texts of a case."""
    waiting: Annotated[int, Field(ge=1)] = 10_000
    """Most messages that wait to be written, in each worker."""
    block_share: Share = 0.0
    """Share of blocked messages that is kept too, at random, for quality control."""
    pass_share: Share = 0.0
    """The same of messages that pass."""


class Settings(BaseSettings):
    """Everything that can be set; milliseconds, bytes and seconds as the names say."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    uds: Path | None = None
    """Listen on this Unix socket instead of TCP."""
    bundle: Path | None = None
    """The bundle to serve, by default the one in the package; read again on reload."""
    bundle_id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = None
    """Refuse every bundle with another id, at start and on reload."""
    review_rate: TargetRate | None = None
    """False-positive rate of the action review, by default the bundle's; with block_rate."""
    block_rate: TargetRate | None = None
    shadow: Path | None = None
    """A second bundle that scores the same traffic, is counted, and never answers."""
    dry_run: bool = False
    """Answer pass to everything, and count what would have been reviewed or blocked."""
    keys: Path | None = None
    """File of hashed API keys, see keys.py; without it everyone who can connect may ask. While it is empty or missing,
    nobody may."""
    allow_open: bool = False
    """Allow a public address without keys."""
    page: bool = True
    """Serve the page for people at /."""
    explain: bool = True
    """Allow requests for evidence, which costs a network run for each word."""
    workers: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=lambda: min(4, len(os.sched_getaffinity(0))))
    """Processes that score, by default one per core, at most four; limits of requests and queues apply to each."""
    log_requests: Literal["all", "errors"] = "errors"

    deadline_ms: Annotated[int, Field(ge=1, le=5_000)] = 50
    """From arrival to answer, unless a request names its own."""
    on_deadline: Literal["pass", "review", "block"] = "pass"
    """The least action for a message that was not read to the end in time; pass fails open, block fails closed."""
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = 2_048
    """Messages that may wait, shared among clients."""
    max_requests: Annotated[int, Field(ge=1)] = 256
    """Requests under way at a time, shared among clients."""
    drain_seconds: Annotated[float, Field(ge=0, le=3_600)] = 10.0
    """After SIGTERM, longest time to answer accepted requests."""

    # The memory and its storage; read again on SIGHUP.
    state: Annotated[str, Field(pattern="^(memory|rediss?://.+|unix://.+)$")] = "memory"
    """memory is shared by this machine's workers; redis://HOST:PORT/DB, rediss://... and unix:///PATH by machines."""
    state_secret: Path | None = None
    """32 bytes in hex, the same on all machines that share a state; with memory made next to the known wordings."""
    senders: SenderSettings | None = None
    """Review suspicious messages from senders of flagged ones, or with their contacts; off by default."""
    on_memory_timeout: Literal["pass", "review"] = "pass"
    """The least action for a message of the risk of `senders` whose look-up in the state was late."""
    conversations: ConversationSettings | None = None
    """Also score the last messages from one sender to one receiver as one text; off by default."""
    burst: BurstSettings | None = None
    """Review messages that are suspicious only in bulk; off by default."""
    known: Path | None = None
    """File of the known wordings of a state in memory; by default in $STATE_DIRECTORY or ~/.local/state/jingyin."""
    policy: Path | None = None
    """File of rules by sender, signature, route and key; see serve/memory/policy.py."""
    cases: CaseSettings | None = None
    """Keep messages with action review for analysts, and take subscribers' reports; off by default."""

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
        if errors:
            raise ValueError("; ".join(errors))
        return self

    @property
    def known_file(self) -> Path:
        """The file of the known wordings, whose folder is systemd's StateDirectory, or the user's, by default."""
        if self.known:
            return self.known
        if given := os.environ.get("STATE_DIRECTORY"):
            return Path(given.partition(":")[0]) / "known.json"
        return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "jingyin" / "known.json"

    @property
    def secret_file(self) -> Path:
        """The file of the state's secret."""
        return self.state_secret or self.known_file.with_name("secret")

    @property
    def rates(self) -> dict[str, Any]:
        """Arguments of Scorer.load."""
        return {"review_rate": self.review_rate, "block_rate": self.block_rate}

    @property
    def is_public(self) -> bool:
        """Whether other machines can connect."""
        try:
            return not self.uds and not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"


def load_settings(config: Path | None = None, **flags: Any) -> Settings:  # noqa: ANN401  fields of Settings
    """Read the settings; flags that are None count as not given. Raises ConfigError that lists all errors."""
    given = {name: value for name, value in flags.items() if value is not None}
    names = [name[len(PREFIX) :] for name in os.environ if name.startswith(PREFIX)]
    if unknown := sorted(name for name in names if name.lower() not in Settings.model_fields):
        raise ConfigError(f"unknown settings in the environment: {', '.join(PREFIX + name for name in unknown)}")
    in_file: dict[str, Any] = {}
    if config is not None:
        try:
            config.open("rb").close()  # the source ignores a missing file
            in_file = YamlConfigSettingsSource(Settings, config, yaml_file_encoding="utf-8")()
        except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            fault = f"{config} can't be read as YAML names with values ({type(error).__name__})"
            raise ConfigError(f"{fault}; see configs/serve.yaml") from None
    try:
        return Settings(**{**in_file, **EnvSettingsSource(Settings)(), **given})
    except ValidationError as error:
        raise ConfigError(f"the settings of `jingyin serve` are wrong: {faults_of(error)}") from None
