"""What system workers do: files, batches and webhooks."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

from pydantic import Field, SecretStr, field_validator

from farm.settings.base import Group, names


class FilesSettings(Group):
    url: SecretStr | None = None
    """Where uploaded files and the results of batches lie: a folder, or a URL that fsspec knows, as s3://bucket/farm.
    API and system workers must be told the same. Unset: the folder ``files`` of FARM_LOCAL__STATE_DIR."""
    max_bytes: int = Field(200 << 20, ge=1 << 10)
    """The largest file."""
    tenant_bytes: int = Field(20 << 30, ge=1 << 20)
    """How much one tenant may keep; a file counts for at least 4 KiB. Results of batches are always kept."""
    retention_s: float = Field(30 * 86400.0, ge=1)
    """How long a file is kept that does not say for itself, and how long a batch can be read after its end."""


class BatchesSettings(Group):
    max_lines: int = Field(50_000, ge=1)
    """The most lines of a batch."""
    open_batches: int = Field(100, ge=1)
    """How many batches that have not ended a tenant may have."""
    active: int = Field(8, ge=1, le=256)
    """How many batches a system worker drives at once; with more, each gets its turn."""
    turn_s: float = Field(15.0, gt=0)
    """How long a batch is driven while others wait for a turn. Its jobs run on meanwhile."""
    window: int = Field(1_000, ge=1, le=100_000)
    """The most jobs of one batch that wait or run; what is done with leaves the server."""
    flush_s: float = Field(10.0, gt=0)
    """How often results are written to the file store, a file each time; sooner when there are many."""


class WebhooksSettings(Group):
    allow: list[str] = Field([])
    """Networks that may be called though they are private, and without TLS, with commas between them: 10.1.0.0/16.
    What a tenant names elsewhere must be https and in the open internet."""
    timeout_s: float = Field(10.0, gt=0, le=60)
    """How long a receiver may take to answer, from the look-up of its name on."""
    give_up_s: float = Field(86400.0, gt=0)
    """How long after a job's end its webhook is tried; never beyond the job's retention."""
    retry_base_s: float = Field(5.0, gt=0)
    """The wait before the second try; each further one is three times as long."""
    retry_cap_s: float = Field(6 * 3600.0, gt=0)
    """The longest wait between two tries."""
    concurrency: int = Field(32, ge=1, le=1024)
    """How many receivers a system worker calls at once. One receiver gets an eighth of them, one tenant a quarter."""

    @field_validator("allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return names(value)

    @field_validator("allow")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for text in value:
            try:
                ip_network(text)
            except ValueError:
                raise ValueError("networks as 10.1.0.0/16 or fd00::/8, with no bit set behind the prefix") from None
        return value

    @property
    def allowed(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks in ``allow``."""
        return tuple(ip_network(text) for text in self.allow)
