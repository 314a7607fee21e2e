"""What all dashboards share: variables, links to each other and to the runbooks, the marks of alerts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from grafana import runbooks
from grafana.panels import SOURCE, Panel, link

TAG = "bloomfarm"
ALL = "$__all"


@dataclass(frozen=True, slots=True)
class Choice:
    """A variable: the values that a label has."""

    name: str
    metric: str

    @property
    def where(self) -> str:
        """The matcher that keeps to what was chosen."""
        return f'{self.name}=~"${self.name}"'


MODEL = Choice("model", "farm_queue_depth")
INSTANCE = Choice("instance", "farm_slots")
TENANT = Choice("tenant", "farm_tenant_waiting_jobs")


@dataclass(frozen=True, slots=True)
class Section:
    """A row with its panels."""

    title: str
    panels: Sequence[Panel]


def make(
    slug: str, title: str, about: str, choices: Sequence[Choice], sections: Sequence[Section]
) -> dashboard.Dashboard:
    """A dashboard whose address ends in ``bloomfarm-SLUG``."""
    made = (
        dashboard.Dashboard(f"Bloomfarm: {title}")
        .uid(f"bloomfarm-{slug}")
        .description(about)
        .tags([TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .link(
            dashboard.DashboardLink("The farm")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
        .link(link("Runbooks", runbooks.url("index")))
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("red")
            .expr('ALERTS{alertname=~"Farm.+", alertstate="firing", severity="page"}')
        )
    )
    for choice in choices:
        made.with_variable(_variable(choice))
    for section in sections:
        made.with_row(dashboard.Row(section.title))
        for panel in section.panels:
            made.with_panel(panel)
    return made


def text(made: dashboard.Dashboard) -> str:
    """A dashboard as Grafana reads it. Panels are numbered, so that links to them last."""
    built = made.build()
    for number, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _variable(choice: Choice) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(choice.name)
        .label(choice.name.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({choice.metric}, {choice.name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value=ALL))
    )
