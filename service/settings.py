"""What can be set, by a flag of `taillift serve` or by its twin in the environment."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError

if TYPE_CHECKING:
    from taillift.models.bundle.device import Device


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batch_views(settings: dict[str, Any]) -> int:
    """On a CPU a view costs the same from a batch of one on, and a small batch is over sooner."""
    return 40 if settings.get("provider") in ("cuda", "tensorrt") else 10


class Settings(BaseSettings):
    """What is not given is read from `TAILLIFT_*`, and what is not there has its default."""

    model_config = SettingsConfigDict(env_prefix="TAILLIFT_", frozen=True, extra="forbid")

    bundle: Path = Field(description="The bundle's folder.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every one.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port for /metrics alone; none: /metrics is on `port`."
    )
    provider: Literal["cpu", "cuda", "tensorrt", "openvino"] = Field(
        "cpu", description="Device; where it is not to be had, the service does not start."
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto",
        description="Arithmetic of the model; auto: the fastest here whose accuracy is within 0.3 "
        "points of fp32's.",
    )
    device_memory_bytes: int | None = Field(
        None, ge=1, description="Bytes of a GPU's memory that the model may take; none: all."
    )
    engines: Path | None = Field(
        None, description="Folder that keeps TensorRT's engines; none: built at every start."
    )
    # Decoding and inference share the cores: each is bounded by them and the kernel divides.
    threads: int = Field(
        default_factory=cores, ge=1, description="Threads that compute one batch on the CPU."
    )
    decode_threads: int = Field(
        default_factory=cores, ge=1, description="Images that are decoded at the same time."
    )
    keys: SecretStr | None = Field(
        None, description="API keys, separated by commas; none, here and in a file: no key needed."
    )
    keys_file: Path | None = Field(
        None, description="File with an API key and perhaps a name on each line; may be changed."
    )
    priors: Path | None = Field(
        None, description="JSON file of priors by name, {name: {label: weight}}, for prior=NAME."
    )
    max_connections: int = Field(
        800,
        ge=1,
        description="Open connections beyond which one more is refused (429), but on metrics_port.",
    )
    max_header_bytes: int = Field(
        32 * 2**10, ge=1, description="Bytes of headers beyond which a request is refused (431)."
    )
    max_headers: int = Field(
        100, ge=1, description="Headers beyond which a request is refused (431)."
    )
    header_seconds: float = Field(
        10, gt=0, description="Seconds to send the headers, after which it is refused (408)."
    )
    max_body_bytes: int = Field(
        32 * 2**20, ge=1, description="Bytes of a body beyond which a request is refused (413)."
    )
    body_seconds: float = Field(
        60, gt=0, description="Seconds to send a body, after which a request is refused (408)."
    )
    max_images: int = Field(64, ge=1, description="Images beyond which a request is refused (400).")
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, description="Pixels beyond which an image is refused (413)."
    )
    decode_pixels: int = Field(
        2 * MAX_PIXELS, ge=1, description="Pixels that are decoded at the same time."
    )
    answer_seconds: float = Field(
        60,
        gt=0,
        description="Seconds to answer a request, after which it is given up (408); the header "
        "X-Request-Timeout allows fewer.",
    )
    batch_views: int = Field(
        default_factory=batch_views,
        ge=1,
        description="Views that the device is given at once: by default 10 of a CPU, 40 of a GPU.",
    )
    queue_views: int = Field(
        1_000, ge=1, description="Views in work beyond which requests are rejected (429)."
    )
    queue_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="Bytes of bodies and views in work beyond which requests are rejected (429).",
    )
    stall_seconds: float = Field(
        60,
        gt=0,
        description="Seconds of a batch, or of one image in every decode thread, after which the "
        "service is not ready (503).",
    )
    drain_seconds: int = Field(
        30, ge=1, description="Seconds to answer what was accepted, once told to stop."
    )
    class_metrics: Literal["auto", "on", "off"] = Field(
        "auto", description="Metrics by class; auto: up to 2,000 classes. Groups always have them."
    )
    reference: str = Field(
        "train",
        min_length=1,
        description="How often classes are expected: train, uniform, measured, or a CSV file "
        "class,weight.",
    )
    tail_window_seconds: float = Field(
        604_800, ge=60, description="Seconds of predictions that counts and confidences are of."
    )
    tail_level: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share of false findings among the drifting or silent classes, in the mean "
        "at most.",
    )
    tail_file: Path | None = Field(
        None,
        description="SQLite file that keeps the tail's statistics over a restart; none: they begin "
        "anew.",
    )

    @property
    def device(self) -> "Device":
        """Raises `UserError` where the settings of the device do not fit together."""
        from taillift.models.bundle.device import Device, Provider
        from taillift.models.bundle.schema import Precision

        # The other providers take it from the graph.
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
    """Settings from what is given (None: not given) and the environment; raises `UserError`."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"setting {where}: {first['msg']} (given: {first['input']!r})") from None
