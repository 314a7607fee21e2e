"""Records as Markdown, and the part of the docs that is made of them."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.compare.chart import chart_path
from benchmarks.compare.results import FOLDER, Record, read_all

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN = "<!-- figures: written by `python -m benchmarks.compare --docs` -->"
END = "<!-- end of figures -->"
NONE_YET = "No figures are kept yet: `make bench` writes them."
HEAD = ["engine", "tokens/s", "× static 16", "peak memory", "same tokens as one by one"]


def write_docs(docs: Path = DOCS, folder: Path = FOLDER) -> None:
    """Put the figures that are kept into the docs."""
    docs.write_text(with_figures(docs.read_text(), figures(read_all(folder), docs.parent)))


def with_figures(text: str, found: str) -> str:
    """The docs with what stands between the two marks replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"the docs lack the mark {BEGIN}"
    assert end, f"the docs lack the mark {END}"
    return f"{before}{BEGIN}\n\n{found}\n\n{END}{after}"


def figures(records: dict[Path, Record], docs_folder: Path) -> str:
    """A section for each record."""
    if not records:
        return NONE_YET
    return "\n\n".join(
        section(found, os.path.relpath(chart_path(path), docs_folder)) for path, found in records.items()
    )


def section(found: Record, chart: str) -> str:
    """Model, machine, table, chart and floor of one record."""
    model, work, machine = found["model"], found["workload"], found["machine"]
    shape = f"{model['hidden']} wide, {model['layers']} layers, {model['heads']} heads, vocabulary {model['vocab']:,}"
    distinct = f" ({work['distinct_tokens']:,} distinct)" if work["distinct_tokens"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"## {model['name']}: {shape}",
        "",
        f"{model['parameters'] / 1e6:.0f} M parameters; {work['requests']} requests, {work['prompt_tokens']:,} prompt "
        f"tokens, {work['tokens']:,} generated{distinct}. {machine['cpu']}, {machine['cores']} cores; "
        f"commit {found['commit']}; {versions}.",
        "",
        f"    {found['command']}",
        "",
        table(found),
        "",
        f"![Tokens per second of each engine]({chart})",
    ]
    if found["left_out"]:
        lines += ["", "Not measured: " + "; ".join(f"{name} ({why})" for name, why in found["left_out"].items()) + "."]
    if "engine_s" in found["floor"]:
        lines += ["", floor(found["floor"])]
    return "\n".join(lines)


def table(found: Record) -> str:
    """Contenders by speed, the slowest first."""
    rows = sorted(found["contenders"].values(), key=lambda row: row["tokens_per_s"])
    cells = [
        HEAD,
        ["---", "--:", "--:", "--:", "---"],
        *(row_cells(row, found["workload"]["requests"]) for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def row_cells(row: Record, requests: int) -> list[str]:
    """One contender's cells."""
    label = row["label"] + (f" (first {row['requests']} requests)" if row["requests"] < requests else "")
    peak = f"{row['peak_bytes'] / 2**20:,.0f} MiB" if row["peak_bytes"] else "–"
    times = f"{row['times_static_16']:.2f}" if "times_static_16" in row else "–"
    return [label, f"{row['tokens_per_s']:,.0f}", times, peak, same_tokens(row)]


def same_tokens(row: Record) -> str:
    """The share of equal tokens, and how requests that differ do. The reference has none to be compared with."""
    found = row.get("identity")
    if found is None:
        return "–"
    share = f"{100 * found['token_share']:.4g} %"
    parted = found["requests"] - found["same_requests"]
    if not parted:
        return share
    return f"{share}; {parted} of {found['requests']} requests part, {found['ties']} of them at a tie"


def floor(found: Record) -> str:
    """What the machine would allow, in words."""
    return (
        f"The floor: this machine reads {found['read_bytes_per_s'] / 1e9:.1f} GB/s and multiplies at "
        f"{found['operations_per_s'] / 1e9:.0f} GFLOPS. To read the weights once in each of the engine's "
        f"{found['steps']} steps takes {found['memory_s']:.2f} s, to multiply all rows by them "
        f"{found['compute_s']:.2f} s; the engine took {found['engine_s']:.2f} s, so the larger of the two is "
        f"{100 * found['reached']:.0f} % of its time."
    )
