"""Every setting of the farm: frozen groups, read from ``FARM_<GROUP>__<NAME>`` when asked for, never at import.

A name that no group has is an error that names the nearest one. Times are in seconds, sizes in bytes.
"""

from farm.settings.access import ApiSettings, ClientSettings, FlowerSettings, LimitsSettings
from farm.settings.background import BatchesSettings, FilesSettings, WebhooksSettings
from farm.settings.generation import EngineSettings, ModelSettings, WorkerSettings
from farm.settings.load import PREFIX, Settings, check_names, load_settings, setting_names
from farm.settings.operation import LocalSettings, LogsSettings, TelemetrySettings
from farm.settings.queue import BrokerSettings, KeeperSettings, LeaseSettings, RedisSettings

__all__ = [
    "PREFIX",
    "ApiSettings",
    "BatchesSettings",
    "BrokerSettings",
    "ClientSettings",
    "EngineSettings",
    "FilesSettings",
    "FlowerSettings",
    "KeeperSettings",
    "LeaseSettings",
    "LimitsSettings",
    "LocalSettings",
    "LogsSettings",
    "ModelSettings",
    "RedisSettings",
    "Settings",
    "TelemetrySettings",
    "WebhooksSettings",
    "WorkerSettings",
    "check_names",
    "load_settings",
    "setting_names",
]
