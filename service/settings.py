"""The settings of the service: each is a flag of `taillift serve` and an environment variable.

This is the only list of them. The flags, the table in docs/service.md and the tests are made from
it; `python -m taillift.service.settings` prints the table.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from taillift.models.bundle.posterior import MOST_TAIL
from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from taillift.models.bundle.device import Device

PREFIX: Final = "TAILLIFT_"
# What compose.yaml and its companions read; they may be in the environment of a shell as well.
COMPOSE_VARIABLES: Final = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "ALERTS_TO",
        "BUNDLE_DIR",
        "CONFIG_DIR",
        "KEYS_SECRET",
        "PUBLISHED_ADDRESS",
        "PUBLISHED_HOSTS",
        "PUBLISHED_PORT",
        "STOP_GRACE",
    )
)
# What training reads; it may be in the environment of a shell as well.
TRAINING_VARIABLES: Final = frozenset({f"{PREFIX}CACHE_GIB"})
# What Kubernetes sets in every container if the name of a service begins with taillift, ...
KUBERNETES_VARIABLE: Final = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
# ... and the value of one more, which may have the name of a setting.
KUBERNETES_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://.*")
HOST_NAME: Final = re.compile(r"\*|(\*\.)?[\w.-]+|[0-9A-Fa-f:.]+")
ORIGIN: Final = re.compile(
    r"\*|[a-z][a-z0-9+.-]*://([\w.-]+|\[[0-9a-f:.]+\])(:\d+)?", re.IGNORECASE
)


def is_web_address(text: str) -> bool:
    """Return whether a text is an address such as http://collector:4318."""
    try:
        address = urlsplit(text)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        return False


LogFormat = Literal["text", "json"]
AccessLevel = Literal["off", "errors", "all"]


# The quota of a container: processor time in each period, in microseconds (version 2 and 1).
QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
QUOTA_V1: Final = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
PERIOD_V1: Final = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def cores() -> int:
    """Return the number of CPU cores that this process may use, at least 1.

    A container's quota counts as well: with more threads than it allows, all of them stop together
    until the next period.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, quota_cores())))


def quota_cores() -> float:
    """Return the cores that the cgroup's quota is worth; infinity without one."""
    for files in ((QUOTA,), (QUOTA_V1, PERIOD_V1)):
        try:
            quota, period = map(float, " ".join(file.read_text() for file in files).split())
        except (OSError, ValueError):  # "max", or another version.
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf


def batch_views(settings: dict[str, Any]) -> int:
    """Return the default batch size for the provider.

    On a CPU every view costs the same in a batch of any size, and a small batch ends sooner.
    """
    return 40 if settings.get("provider") in ("cuda", "tensorrt") else 10


COMPUTED_DEFAULTS: Final = {cores: "one per core", batch_views: "10 or 40"}

# The groups of `taillift serve --help`. What is in none of them is common, and is shown first.
GROUPS: Final = {
    "Connections": (
        "metrics_port root_path trusted_proxies cors_origins max_connections max_header_bytes "
        "max_headers header_seconds body_seconds stall_seconds keep_alive_seconds notice_seconds "
        "drain_seconds"
    ),
    "Computing": (
        "device_memory_bytes engines decode_threads decode_pixels batch_views queue_views "
        "queue_bytes queue_pixels"
    ),
    "Limits of a request": (
        "max_body_bytes max_images max_image_bytes max_pixels max_request_pixels answer_seconds"
    ),
    "Rare classes": (
        "tail live_prior live_prior_images live_prior_half_life class_metrics reference "
        "tail_window_seconds tail_level"
    ),
    "Logs": "access_log",
    "Versions": "store swap admin_keys_file model_name",
    "Labels": "feedback_key_file feedback_file feedback_days feedback_max",
    "Labelling": "review_dir review_per_day review_days review_bytes",
}


class Settings(BaseSettings):
    """The settings of one service: given values first, then `TAILLIFT_*`, then the defaults."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False
    )

    bundle: Path | None = Field(
        None, description="Folder of the bundle to serve, unless a store is set."
    )
    host: str = Field(
        "127.0.0.1", description="Address to listen on; 0.0.0.0 listens on all interfaces."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Separate port for /metrics. Unset: /metrics is on the main port.",
    )
    provider: Literal["cpu", "cuda", "tensorrt", "openvino"] = Field(
        "cpu",
        description="Device to run on. The service refuses to start if it is unavailable.",
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto",
        description="Numeric precision of the model; auto picks the fastest one on this machine "
        "whose accuracy is within 0.3 points of fp32.",
    )
    device_memory_bytes: int | None = Field(
        None, ge=1, description="GPU memory that the model may use, in bytes. Unset: all of it."
    )
    engines: Path | None = Field(
        None,
        description="Cache directory for TensorRT engines. Unset: rebuild at every start.",
    )
    # Decoding and inference share the cores: each may use all of them, and the kernel divides.
    threads: int = Field(
        default_factory=cores, ge=1, description="CPU threads that compute one batch."
    )
    decode_threads: int = Field(
        default_factory=cores, ge=1, description="Number of images decoded in parallel."
    )
    keys: SecretStr | None = Field(
        None,
        description="API keys, separated by commas. If neither this nor keys_file is set, clients "
        "need no key.",
    )
    keys_file: Path | None = Field(
        None,
        description="File with one API key per line, optionally followed by a name, and then by "
        "`feedback` if the key may send labels; changes are picked up without a restart.",
    )
    priors: Path | None = Field(
        None,
        description="JSON file of named priors, {name: {label: weight}}, for requests with "
        "prior=NAME.",
    )
    allowed_hosts: str | None = Field(
        None,
        description="Host names to answer for, separated by commas; *.example.org means all below "
        "it. Unset: this machine's if host is a loopback address, else any.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins of web pages that may use the service, separated by commas; * means "
        "any. Unset: only its own page.",
    )
    max_connections: int = Field(
        800,
        ge=1,
        description="Open connections beyond which new ones are refused (429), except on "
        "metrics_port.",
    )
    max_header_bytes: int = Field(
        32 * 2**10,
        ge=1,
        description="Size of a request's headers beyond which it is refused (431), in bytes.",
    )
    max_headers: int = Field(
        100, ge=1, description="Number of headers beyond which a request is refused (431)."
    )
    header_seconds: float = Field(
        10,
        gt=0,
        description="Time a client has to send the headers before the request is refused (408), "
        "in seconds.",
    )
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        description="Time that an idle connection is kept for the next request, in seconds; longer "
        "than a load balancer in front keeps it.",
    )
    max_body_bytes: int = Field(
        32 * 2**20,
        ge=1,
        description="Size of a body beyond which the request is refused (413), in bytes.",
    )
    body_seconds: float = Field(
        60,
        gt=0,
        description="Time a client has to send a body before the request is refused (408), in "
        "seconds.",
    )
    max_images: int = Field(
        64, ge=1, description="Number of images beyond which a request is refused (400)."
    )
    max_image_bytes: int = Field(
        16 * 2**20,
        ge=1,
        description="Size of one image's file beyond which it is refused (413), in bytes.",
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, description="Number of pixels beyond which an image is refused (413)."
    )
    max_request_pixels: int = Field(
        8 * MAX_PIXELS,
        ge=1,
        description="Total pixels of a request's images beyond which it is refused (413).",
    )
    decode_pixels: int = Field(
        2 * MAX_PIXELS,
        ge=1,
        description="Total pixels of the images being decoded at the same time.",
    )
    answer_seconds: float = Field(
        60,
        gt=0,
        description="Time to answer a request before it is given up (408), in seconds; the header "
        "X-Request-Timeout can shorten it.",
    )
    batch_views: int = Field(
        default_factory=batch_views,
        ge=1,
        description="Largest batch, in views: 10 by default on a CPU, 40 on a GPU.",
    )
    queue_views: int = Field(
        1_000, ge=1, description="Views in progress beyond which requests are refused (429)."
    )
    queue_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="Bytes of request bodies and views in progress beyond which requests are "
        "refused (429).",
    )
    queue_pixels: int = Field(
        20 * MAX_PIXELS,
        ge=1,
        description="Pixels that wait to be decoded beyond which requests are refused (429).",
    )
    stall_seconds: float = Field(
        60,
        gt=0,
        description="Time without a finished batch, or without a decoded image if all decode "
        "threads are busy, after which the service is not ready (503), in seconds.",
    )
    notice_seconds: float = Field(
        1,
        ge=0,
        description="Time between a signal to stop, from which on /readyz answers 503, and the "
        "closing of the port, in seconds; as long as a load balancer takes to notice.",
    )
    drain_seconds: int = Field(
        30,
        ge=1,
        description="Time to answer the accepted requests when the service is stopped, in seconds.",
    )
    class_metrics: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Metrics for every class; auto: only if there are at most 2,000 classes. "
        "Groups always have them.",
    )
    tail: float = Field(
        0.0,
        ge=0,
        le=MOST_TAIL,
        description="How far answers lean toward the rare classes if a request does not say, 0 to "
        "1: as if trained with tau = 1 + tail. Such answers have no decision.",
    )
    live_prior: bool = Field(
        False,
        description="Let requests ask for prior=live: the shares of the groups many, medium and "
        "few as the monitoring estimates them.",
    )
    live_prior_images: int = Field(
        200, ge=1, description="Images before the live prior first moves."
    )
    live_prior_half_life: float = Field(
        1000,
        ge=100,
        description="Images after which a prediction counts half for the live prior.",
    )
    reference: str = Field(
        "train",
        min_length=1,
        description="How often each class is expected: train, uniform, measured, or a CSV file "
        "with the columns class,weight.",
    )
    tail_window_seconds: float = Field(
        604_800,
        ge=60,
        description="Length of the sliding window for counts and confidences, in seconds.",
    )
    tail_level: float = Field(
        0.05,
        ge=1e-6,
        lt=1,
        description="False discovery rate for drifting and silent classes.",
    )
    tail_file: Path | None = Field(
        None,
        description="SQLite file that keeps the monitoring state across restarts. Unset: "
        "monitoring starts afresh.",
    )
    log_format: LogFormat = Field(
        "text", description="Format of the log on standard error; json: one JSON object per line."
    )
    access_log: AccessLevel = Field(
        "errors",
        description="Requests to log: off, errors (status 500 and above, except a failed readiness "
        "probe; at most 20 a second, the rest is counted), or all.",
    )
    store: Path | None = Field(
        None,
        description="Folder of a store, as `taillift models` makes it, whose champion is served "
        "instead of the bundle; changes are followed without a gap.",
    )
    swap: Literal["alongside", "replace"] = Field(
        "alongside",
        description="alongside: a new version of the store is loaded while the old one answers; "
        "replace, for little memory: the old one is closed before, with the service not ready.",
    )
    admin_keys_file: Path | None = Field(
        None,
        description="File of API keys, as keys_file, that may change which version of the store is "
        "served, by /admin. Unset: /admin does not exist.",
    )
    feedback_key: SecretStr | None = Field(
        None,
        description="Keys that sign the ids of predictions, separated by commas: the first signs, "
        "all are known. Every replica needs the same. Unset: after a restart, old ids are unknown.",
    )
    feedback_key_file: Path | None = Field(
        None,
        description="File with keys that sign the ids of predictions, one per line, after those of "
        "feedback_key.",
    )
    feedback_file: Path | None = Field(
        None,
        description="SQLite file that keeps the labels. Unset: they are kept in memory, and lost "
        "at the end.",
    )
    feedback_days: int = Field(
        90,
        ge=1,
        le=3650,
        description="Age of predictions beyond which labels are not taken and do not count, in "
        "days.",
    )
    feedback_max: int = Field(
        1_000_000, ge=1, description="Number of labels beyond which new ones are refused."
    )

    review_dir: Path | None = Field(
        None,
        description="Folder in which photos are kept for a person to label, drawn at random with "
        "the rare ones more often. Unset: no photo is kept.",
    )
    review_per_day: int = Field(
        100, ge=1, description="About how many photos a day are kept for labelling."
    )
    review_days: float = Field(
        30, gt=0, description="Days after which a photo kept for labelling is removed."
    )
    review_bytes: int = Field(
        2**30,
        ge=1,
        description="Bytes of photos kept for labelling beyond which the oldest are removed.",
    )

    model_name: str | None = Field(
        None,
        pattern=r"^[^/]+$",
        description="Name of the model in the addresses of the Open Inference Protocol, besides "
        "the bundle's own.",
    )
    root_path: str | None = Field(
        None,
        pattern=r"^(/[\w.~-]+)+$",
        description="Path below which a proxy offers the service, such as /photos; requests may "
        "come with it or without. Unset: none.",
    )
    trusted_proxies: str | None = Field(
        None,
        description="Addresses and networks of proxies, separated by commas, whose X-Forwarded-For "
        "and X-Forwarded-Proto are believed; * means any. Unset: those on this machine.",
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, text: str | None) -> str | None:
        for host in parts(text):
            if not HOST_NAME.fullmatch(host):
                raise ValueError(f"{host} is not a host name: leave out scheme, port and path")
        return text

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, text: str | None) -> str | None:
        for origin in parts(text):
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is not an origin such as https://app.example.org")
        return text

    @property
    def folder(self) -> Path:
        """The folder of the bundle that is served without a store.

        Raises `UserError` if there is none.
        """
        if self.bundle is None:
            raise UserError("name the folder of a bundle to serve, or of a store with --store")
        return self.bundle

    @property
    def device(self) -> "Device":
        """Device that the model runs on; raises `UserError` if its settings do not fit together."""
        from taillift.models.bundle.device import Device, Provider
        from taillift.models.bundle.schema import Precision

        # The other providers read the precision from the graph.
        half = (self.provider, self.precision) == ("tensorrt", "fp16")
        return Device(
            provider=Provider(self.provider),
            threads=self.threads,
            precision=Precision.FP16 if half else Precision.FP32,
            memory_bytes=self.device_memory_bytes,
            batch_views=self.batch_views,
            engines=self.engines,
        )


def read_settings(**given: Any) -> Settings:
    """Return the settings from the given values and the environment; None means "not given".

    Raises `UserError` with the name of the first setting that is wrong, or of a variable that is
    none.
    """
    check_environment()
    for name, value in given.items():
        if isinstance(value, str | Path) and not str(value).strip():
            raise UserError(f"setting {name} is blank: give it a value, or leave it out")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"setting {name}: {message} (given: {first['input']!r})") from None


def check_environment() -> None:
    """Raise `UserError` if a variable `TAILLIFT_*` is blank, or is neither a setting nor known."""
    variables = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name, value in os.environ.items():
        if not name.upper().startswith(PREFIX) or KUBERNETES_VARIABLE.fullmatch(name):
            continue
        if name.upper() in COMPOSE_VARIABLES | TRAINING_VARIABLES:
            continue
        if name.upper().endswith("_PORT") and KUBERNETES_ADDRESS.fullmatch(value):
            if name.upper() in variables:
                raise UserError(
                    f"{name} is {value}, which Kubernetes sets because a service has this name: "
                    "set enableServiceLinks: false in the pod"
                )
            continue
        if name.upper() not in variables:
            hint = did_you_mean(name.upper(), sorted(variables))
            raise UserError(f"{name} is not a setting{hint}: correct its name, or unset it")
        # Keys are refused where they are read, in words of their own.
        if name.upper() != f"{PREFIX}KEYS" and not value.strip():
            raise UserError(f"{name} is blank: give it a value, or unset it")


def parts(text: str | None) -> Sequence[str]:
    """Return the parts of a list that is separated by commas, without the blank ones."""
    stripped = (part.strip() for part in (text or "").split(","))
    return [part for part in stripped if part]


def default_text(name: str) -> str | None:
    """Return the default of a setting as text; None if it has none and may stay unset."""
    field = Settings.model_fields[name]
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return COMPUTED_DEFAULTS[field.default_factory]
    return None if field.default is None else str(field.default)


def group_of(name: str) -> str | None:
    """Return the group of a setting in `taillift serve --help`; None if it is a common one."""
    return next((group for group, names in GROUPS.items() if name in names.split()), None)


def settings_table() -> str:
    """Return the Markdown table of all settings."""
    rows = [
        f"| `{name}` | {default_text(name) or 'unset'} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| setting | default | what it does |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(settings_table())
