"""Settings: read when asked for, checked together, and silent about passwords."""

from __future__ import annotations

import pytest

from farm.errors import SettingsError
from farm.settings import load_settings, setting_names

pytestmark = pytest.mark.fast


def test_the_environment_sets_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """FARM_<GROUP>__<NAME> sets a setting, in capitals or not; an argument overrides it."""
    monkeypatch.setenv("FARM_ENGINE__MAX_SLOTS", "7")
    monkeypatch.setenv("farm_lease__lease_s", "20")
    settings = load_settings()
    assert (settings.engine.max_slots, settings.lease.lease_s) == (7, 20)
    assert load_settings(engine={"max_slots": 8}).engine.max_slots == 8


def test_another_environment_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping takes the place of the process's environment, values and all."""
    monkeypatch.setenv("FARM_ENGINE__THREADS", "3")
    settings = load_settings({"FARM_ENGINE__MAX_SLOTS": "7", "PATH": "/bin"}, engine={"max_context": 64})
    assert (settings.engine.max_slots, settings.engine.max_context, settings.engine.threads) == (7, 64, None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("FARM_REDIS__ULR", "FARM_REDIS__URL"),
        ("FARM_LEASE__LEASES", "FARM_LEASE__LEASE_S"),
        ("FARM_REDIS__PORT", "FARM_REDIS__"),
        ("FARM_ENGINE_MAX_SLOTS", "FARM_ENGINE__MAX_SLOTS"),
        ("FARM_REDIS", "FARM_REDIS__URL"),
    ],
)
def test_a_misspelt_name_is_an_error_that_names_the_nearest(name: str, hint: str) -> None:
    """A setting that would silently do nothing stops the start."""
    with pytest.raises(SettingsError, match=f"{name} is not a setting; did you mean '{hint}"):
        load_settings({name: "1"})


def test_a_misspelt_override_is_an_error_too() -> None:
    """Settings given in code are checked like those of the environment."""
    with pytest.raises(SettingsError, match="FARM_REDIS__URLL is not a setting; did you mean 'FARM_REDIS__URL'"):
        load_settings(redis={"urll": "redis://x"})


@pytest.mark.parametrize(
    "name",
    [
        "FARM_REDIS_PORT",
        "FARM_REDIS_SERVICE_HOST",
        "FARM_REDIS_SERVICE_PORT",
        "FARM_REDIS_SERVICE_PORT_REDIS",
        "FARM_REDIS_PORT_6379_TCP",
        "FARM_REDIS_PORT_6379_TCP_ADDR",
        "FARM_API_PORT_8000_TCP_PROTO",
        "FARM_PORT",
    ],
)
def test_kubernetes_links_are_not_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubernetes injects for a Service called farm-redis neither sets nor breaks anything."""
    monkeypatch.setenv(name, "tcp://10.0.0.1:6379")
    assert load_settings() == load_settings({})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FARM_LEASE__LEASE_S": "1"}, "FARM_LEASE__LEASE_S must exceed ten times FARM_LEASE__FLUSH_S"),
        ({"FARM_KEEPER__LOCK_S": "2"}, "FARM_KEEPER__STALL_S must exceed FARM_KEEPER__LOCK_S"),
        ({"FARM_KEEPER__UNCLAIMED_S": "1"}, "FARM_KEEPER__UNCLAIMED_S must exceed FARM_KEEPER__LIVENESS_S"),
        ({"FARM_CLIENT__TENANT": "a b"}, "FARM_CLIENT__TENANT: use letters"),
        ({"FARM_CLIENT__TENANT": "a\n"}, "FARM_CLIENT__TENANT: use letters"),
        ({"FARM_MODEL__ID": "///"}, "FARM_MODEL__ID: .* gives no usable name"),
        ({"FARM_ENGINE__MAX_SLOTS": "many"}, "FARM_ENGINE__MAX_SLOTS: 'many' is no good; give a whole number"),
        ({"FARM_ENGINE__MAX_SLOTS": "0"}, "FARM_ENGINE__MAX_SLOTS: '0' is no good; give at least 1"),
        ({"FARM_ENGINE__PREFIX_CACHING": "x"}, "FARM_ENGINE__PREFIX_CACHING: 'x' is no good; give true or false"),
        ({"FARM_LEASE__LEASE_S": "inf"}, "FARM_LEASE__LEASE_S: 'inf' is no good; give a finite number"),
        ({"FARM_MODEL__DTYPE": "int4"}, "FARM_MODEL__DTYPE: 'int4' is no good; give 'auto', 'float32'"),
    ],
)
def test_values_that_cannot_work_stop_the_start(environ: dict[str, str], message: str) -> None:
    """A value out of range, or two that contradict each other, are found before anything runs."""
    with pytest.raises(SettingsError, match=message):
        load_settings(environ)


def test_passwords_stay_out_of_sight() -> None:
    """Printing settings, or an error about them, shows no URL with its password."""
    settings = load_settings({"FARM_REDIS__URL": "redis://:hush@there", "FARM_BROKER__URL": "redis://:hush@here"})
    assert (
        "hush" not in f"{settings} {settings!r} {settings.redis!r} {settings.model_dump()} {settings.model_dump_json()}"
    )
    with pytest.raises(SettingsError) as error:
        load_settings(redis={"url": ["redis://:hush@there"]})
    assert "hush" not in str(error.value)


def test_settings_are_frozen() -> None:
    """Nothing changes settings once they were read."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings({}).lease.lease_s = 5  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    """Each setting has a docstring that operators can read."""
    from farm.settings import Settings

    names = []
    for group, info in Settings.model_fields.items():
        for name, field in info.annotation.model_fields.items():  # type: ignore[union-attr]
            names.append(f"FARM_{group}__{name}".upper())
            assert field.description, f"{names[-1]} has no docstring"
    assert sorted(names) == sorted(setting_names())


def test_a_list_is_names_with_commas() -> None:
    """Queues are named in the environment with commas between them, or none at all."""
    assert load_settings({"FARM_BROKER__FOREIGN_QUEUES": "farm.default, celery"}).broker.foreign_queues == [
        "farm.default",
        "celery",
    ]
    assert load_settings({"FARM_BROKER__FOREIGN_QUEUES": ""}).broker.foreign_queues == []
