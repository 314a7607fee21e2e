"""The panels that dashboards are made of: each has a unit, a description, thresholds and its queries' data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from grafana import runbooks

Panel = Builder[models.Panel]
Steps = Sequence[tuple[float, str]]

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
RATE = "$__rate_interval"
"""The window of a rate that holds enough scrapes, as Grafana knows it."""
WIDTH = 24
FINE: Steps = ()
"""For what can't go wrong by being high or low."""


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and how its series are called."""

    expr: str
    legend: str = ""


def _targets(
    queries: Sequence[Query], *, is_table: bool = False, is_heatmap: bool = False
) -> list[prometheus.Dataquery]:
    made = []
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(query.expr)
        target.legend_format(query.legend or "__auto")
        if is_table:
            target.instant().format(prometheus_models.PromQueryFormat.TABLE)
        else:
            target.range()
        if is_heatmap:
            target.format(prometheus_models.PromQueryFormat.HEATMAP)
        made.append(target)
    return made


def thresholds(steps: Steps, *, base: str = "green") -> dashboard.ThresholdsConfig:
    """Colours by value: ``base`` up to the first step."""
    first = models.Threshold(value=None, color=base)
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([first, *(models.Threshold(value=value, color=color) for value, color in steps)])
    )


def _runbook(name: str) -> list[dashboard.DashboardLink]:
    return [link("Runbooks" if name == "index" else f"Runbook: {name}", runbooks.url(name))]


def link(title: str, url: str) -> dashboard.DashboardLink:
    """A link that opens beside the dashboard."""
    return dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK).url(url).target_blank(True)


def number(
    title: str,
    about: str,
    unit: str,
    query: str,
    *,
    steps: Steps = FINE,
    base: str = "green",
    width: int = 3,
    none: str = "no data",
    names: dict[str, str] | None = None,
    runbook: str = "",
    decimals: int | None = None,
) -> Panel:
    """One figure: its last value, coloured by it. names: words for values."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .datasource(SOURCE)
        .targets(list(_targets([Query(query)])))
        .thresholds(thresholds(steps, base=base))
        .color_mode(common_models.BigValueColorMode.BACKGROUND)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value(none)
        .height(4)
        .span(width)
    )
    if names:
        options = {value: models.ValueMappingResult(text=text) for value, text in names.items()}
        panel.mappings([models.ValueMap(options=options)])
    if decimals is not None:
        panel.decimals(decimals)
    if runbook:
        panel.links(list(_runbook(runbook)))
    return panel


def graph(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    steps: Steps = FINE,
    is_stacked: bool = False,
    width: int = 8,
    most: float | None = None,
    runbook: str = "",
) -> Panel:
    """Lines over time, with thresholds as dashed lines. most: where the axis ends."""
    legend = (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    style = common_models.GraphThresholdsStyleMode.DASHED if steps else common_models.GraphThresholdsStyleMode.OFF
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .min(0)
        .datasource(SOURCE)
        .targets(list(_targets(queries)))
        .thresholds(thresholds(steps))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
        .fill_opacity(25 if is_stacked else 8)
        .line_width(1)
        .show_points(common_models.VisibilityMode.NEVER)
        .span_nulls(False)
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .legend(legend)
        .height(8)
        .span(width)
    )
    if is_stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if runbook:
        panel.links(list(_runbook(runbook)))
    return panel


def quantiles(title: str, about: str, unit: str, metric: str, *, where: str, steps: Steps, width: int = 8) -> Panel:
    """The median, p95 and p99 of a histogram, over all series that ``where`` selects."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{where}}}[{RATE}]))"
    lines = [
        Query(f"histogram_quantile({q}, {buckets})", name) for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    ]
    return graph(title, about, unit, *lines, steps=steps, width=width)


def heat(title: str, about: str, unit: str, metric: str, *, where: str, width: int = 8) -> Panel:
    """How a histogram's values are spread over time: the darker, the more of them."""
    spread = Query(f"sum by (le) (increase({metric}_bucket{{{where}}}[{RATE}]))", "{{le}}")
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .unit("short")
        .datasource(SOURCE)
        .targets(list(_targets([spread], is_heatmap=True)))
        .thresholds(thresholds(FINE))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .height(8)
        .span(width)
    )


def listing(
    title: str,
    about: str,
    unit: str,
    query: str,
    *,
    hidden: Sequence[str],
    width: int = 12,
    steps: Steps = FINE,
    runbook: str = "",
) -> Panel:
    """The labels of the series that there are now, one line each, with their value. hidden: labels to leave out."""
    panel = (
        table.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .datasource(SOURCE)
        .targets(list(_targets([Query(query)], is_table=True)))
        .thresholds(thresholds(steps))
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize", options={"excludeByName": dict.fromkeys(("Time", "__name__", *hidden), True)}
            )
        )
        .filterable(True)
        .no_value("none")
        .height(8)
        .span(width)
    )
    if runbook:
        panel.links(list(_runbook(runbook)))
    return panel
