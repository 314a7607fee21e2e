"""What the benchmarks say of what they measured."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from benchmarks.compare import chart, identity, table
from benchmarks.compare.contender import Contender, Outputs, Request
from benchmarks.compare.host import Run, environ
from benchmarks.compare.plan import BASELINE, CASES, REFERENCE, contenders, why_not
from benchmarks.compare.results import Record, path_of, read_all, record, write
from benchmarks.compare.session import Entry, Session
from benchmarks.floor import Peaks, floor_s
from benchmarks.latency import quantiles
from workers.engine.checkpoint import BloomConfig

pytestmark = pytest.mark.fast

WORK: list[Request] = [([5, 6], 4), ([7], 2)]
TRUTH: Outputs = [[1, 2, 3, 4], [8, 9]]
PEAKS = Peaks(read_bytes_per_s=20e9, operations_per_s=200e9)


def _never(tokens: list[int]) -> float:
    raise AssertionError(f"no gap should be asked for: {tokens}")


def _entry(name: str, walls: list[float], outputs: Outputs = TRUTH, steps: int | None = None) -> Entry:
    known = {one.name: one for one in contenders(CASES["small"])}
    facts = {} if steps is None else {"steps": float(steps)}
    return Entry(known[name], [Run(outputs, wall, 2 * wall, 3 << 20, facts) for wall in walls])


def _record(*entries: Entry) -> Record:
    session = Session({entry.contender.name: entry for entry in entries}, {"vllm": "vllm is not installed"})
    return record(CASES["small"], WORK, session, PEAKS, lambda _: 1.0, "the command")


@pytest.fixture
def found() -> Record:
    """A record of four contenders."""
    return _record(
        _entry(REFERENCE, [6.0]),
        _entry(BASELINE, [3.0]),
        _entry("engine", [0.5], steps=6),
        _entry("farm", [0.7, 0.5, 9.0], [[1, 2, 3, 4], [8, 0]]),
    )


def test_equal_tokens_ask_for_no_gap() -> None:
    """Where all tokens are the reference's, nothing is computed and the share is one."""
    same = identity.compare(WORK, TRUTH, TRUTH, _never)
    assert same == identity.Identity(requests=2, same_requests=2, divergences=0, ties=0, token_share=1.0)


@pytest.mark.parametrize(("gap", "divergences", "ties"), [(1.1e-4, 1, 0), (1e-4, 0, 1), (0.0, 0, 1)])
def test_a_difference_counts_only_where_the_reference_was_sure(gap: float, divergences: int, ties: int) -> None:
    """A first difference is a divergence if the two likeliest logits lie more than 1e-4 apart, else a tie."""
    asked: list[list[int]] = []

    def tell(tokens: list[int]) -> float:
        asked.append(tokens)
        return gap

    parted = identity.compare(WORK, TRUTH, [[1, 2, 0, 4], [8, 9]], tell)
    assert asked == [[5, 6, 1, 2]], "the gap is that of the position where the texts part"
    assert (parted.divergences, parted.ties, parted.same_requests) == (divergences, ties, 1)
    assert parted.token_share == 4 / 6


@pytest.mark.parametrize(("output", "at"), [([1, 2, 3], None), ([0, 2, 3], 0), ([1, 2], 2), ([1, 2, 3, 4], 3), ([], 0)])
def test_texts_part_at_their_first_difference(output: list[int], at: int | None) -> None:
    """Also where one is the beginning of the other."""
    assert identity.first_difference([1, 2, 3], output) == at


def test_figures_are_medians_over_rounds_and_ratios_to_static_batches(found: Record) -> None:
    """One slow round changes neither tokens per second nor the ratio."""
    farm = found["contenders"]["farm"]
    assert farm["wall_s"] == 0.7
    assert farm["tokens_per_s"] == round(6 / 0.7, 1)
    assert farm["times_static_16"] == round(round(6 / 0.7, 1) / 2.0, 2)
    assert farm["wall_s_of_runs"] == [0.7, 0.5, 9.0]
    assert farm["cpu_s"] == 1.4
    assert farm["peak_bytes"] == 3 << 20
    assert farm["identity"]["divergences"] == 1
    assert "identity" not in found["contenders"][REFERENCE]


def test_a_contender_with_fewer_requests_is_judged_by_those() -> None:
    """Its tokens per second are of the requests that it had, and only they are compared."""
    few = _entry("naive_celery", [2.0], [TRUTH[0]])
    few.contender = replace(few.contender, requests=1)
    row = _record(_entry(REFERENCE, [6.0]), _entry(BASELINE, [3.0]), few)["contenders"]["naive_celery"]
    assert (row["requests"], row["tokens_per_s"]) == (1, 2.0)
    assert row["identity"]["token_share"] == 1.0


def test_the_floor_is_the_larger_of_reading_and_multiplying(found: Record) -> None:
    """Weights once a step, and two operations for each weight and row."""
    config = BloomConfig(vocab=100, hidden=10, layers=2, heads=2)
    memory_s, compute_s = floor_s(config, Peaks(1000.0, 2000.0), steps=5, work=[(4, 3), (2, 1)])
    blocks, head = 2 * 12 * 100, 1000
    assert memory_s == 5 * 4 * (blocks + head) / 1000
    assert compute_s == (2 * blocks * (6 + 2) + 2 * head * 4) / 2000
    floor = found["floor"]
    assert floor["reached"] == pytest.approx(max(floor["memory_s"], floor["compute_s"]) / 0.5, abs=0.01)


def test_the_table_shows_each_contender_slowest_first(found: Record) -> None:
    """Tokens per second, ratio, memory, and how requests differ."""
    lines = table.table(found).splitlines()
    assert lines[2] == "| transformers, one by one | 1 | 0.50 | 3 MiB | – |"
    assert lines[3] == "| transformers, static 16 | 2 | 1.00 | 3 MiB | 100 % |"
    assert lines[4].endswith("| 83.33 %; 1 of 2 requests part, 0 of them at a tie |")
    assert lines[5].startswith("| Bloomfarm's engine alone | 12 | 6.00 |")


def test_figures_survive_their_file(found: Record, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A record is read back as it was written, in a file whose name says model and machine."""
    folder = tmp_path_factory.mktemp("results")
    path = write(found, folder)
    assert read_all(folder) == {path: found}
    assert path == path_of(found, folder)
    assert path.name.startswith("small-")
    text = table.with_figures(f"a\n{table.BEGIN}\nold\n{table.END}\nb\n", table.figures({path: found}, folder))
    assert "old" not in text
    assert text.startswith("a\n")
    assert text.endswith("\nb\n")
    assert "the command" in text
    assert "vllm is not installed" in text
    assert f"({path.stem}.svg)" in text


def test_the_docs_show_the_figures_that_are_kept() -> None:
    """docs/benchmarks.md and the charts are what `python -m benchmarks.compare --docs` makes of benchmarks/results."""
    text, records = table.DOCS.read_text(), read_all()
    assert table.with_figures(text, table.figures(records, table.DOCS.parent)) == text
    for path, kept in records.items():
        assert chart.chart_path(path).read_text() == chart.svg(kept)


def test_bars_are_as_long_as_their_figures(found: Record) -> None:
    """The chart is well-formed SVG, and twice the speed is twice the length."""
    root = ElementTree.fromstring(chart.svg(found))  # noqa: S314
    bars = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert len(bars) == 4
    assert bars[1] == pytest.approx(2 * bars[0], abs=0.2)
    assert bars == sorted(bars)


def test_a_contender_that_needs_a_setting_of_another_farm_is_left_out() -> None:
    """It is named with the setting that is missing."""
    assert why_not(Contender("x", "x", "farm_local", settings={"FARM_ENGINE__KV_BYTES": "1"})) is None
    unknown = why_not(Contender("x", "x", "farm_local", settings={"FARM_ENGINE__NO_SUCH": "1"}))
    assert unknown == "this farm has no setting FARM_ENGINE__NO_SUCH"


def test_a_contender_sees_no_settings_but_its_own() -> None:
    """What FARM_ says where the benchmark is started does not reach it."""
    contender = Contender("x", "x", "farm_local", settings={"FARM_ENGINE__MAX_SLOTS": "4"}, environ={"A": "b"})
    seen = environ(contender, {"FARM_REDIS__URL": "redis://elsewhere", "PATH": "/bin"})
    seen.pop("PYTHONPATH")
    assert seen == {"PATH": "/bin", "A": "b", "FARM_ENGINE__MAX_SLOTS": "4"}


def test_names_are_told_apart_in_every_case() -> None:
    """Names are keys of the results; sorting is left out where all requests make one batch."""
    for case in CASES.values():
        names = [one.name for one in contenders(case)]
        assert len(set(names)) == len(names)
        assert ("static_16_sorted" in names) == (case.requests > 16)


def test_the_99th_percentile_sees_one_gap_in_fifty() -> None:
    """The median does not."""
    p50, p99 = quantiles([0.01] * 98 + [0.5] * 2)
    assert (p50, p99) == (0.01, 0.5)
