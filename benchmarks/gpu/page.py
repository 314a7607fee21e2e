"""Records of GPUs as Markdown and charts, and the part of the docs that is made of them."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from benchmarks.gpu.record import FOLDER, Record, read_all

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN = "<!-- GPU figures: written by `python -m benchmarks.gpu --docs` -->"
END = "<!-- end of GPU figures -->"
NONE_YET = "No figures yet: they are only written by a run on a GPU."
WIDTH, LEFT, TOP, PITCH, BAR, RIGHT = 860, 110, 44, 30, 20, 210
OURS, FLOOR, INK = "#2f7d4f", "#d5dbe1", "#7a7a7a"


def write_docs(docs: Path = DOCS, folder: Path = FOLDER) -> None:
    """Draw a chart beside each kept record, and put all figures into the docs."""
    records = read_all(folder)
    for path, found in records.items():
        path.with_suffix(".svg").write_text(chart(found))
    before, begin, rest = docs.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"the docs lack the mark {BEGIN}"
    assert end, f"the docs lack the mark {END}"
    sections = [section(one, os.path.relpath(path.with_suffix(".svg"), docs.parent)) for path, one in records.items()]
    figures = "\n\n".join(sections) or NONE_YET
    docs.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}")


def section(found: Record, chart_path: str) -> str:
    """Model, device, tables and chart of one record."""
    device, model = found["device"], found["model"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    size = f", {device['bytes'] / 1e9:.0f} GB" if device["bytes"] else ""
    kv_dtype = found.get("kv_dtype", "auto")  # a record of before the option has none
    kept, option = (f", {kv_dtype} keys and values,", f" --kv-dtype {kv_dtype}") if kv_dtype != "auto" else ("", "")
    lines = [
        f"### Bloom-{model['name']} in {found['dtype']}{kept} on {device['name']}{size}",
        "",
        f"{model['parameters'] / 1e6:,.0f} M parameters, random weights; kernels: {found.get('kernels', '–')}. "
        f"CUDA {device['cuda']}; {versions}; commit {found['commit']}.",
        "",
        f"    python -m benchmarks.gpu --model {model['name']}{option}",
        "",
        _decode_table(found),
        "",
        f"![Decode tokens per second by batch, and what the device's rate of reading would allow]({chart_path})",
        "",
        *[f"* {line}" for line in facts(found)],
    ]
    if found["left_out"]:
        lines += ["", "Not measured: " + "; ".join(f"{part} ({why})" for part, why in found["left_out"].items()) + "."]
    return "\n".join(lines)


def facts(found: Record) -> list[str]:
    """What was measured beside decode, a line each."""
    said = []
    ratios = found.get("ratios", {})
    if floors := found.get("floors"):
        said.append(
            f"The device reads {floors['read_bytes_per_s'] / 1e9:,.0f} GB/s and multiplies at "
            f"{floors['operations_per_s'] / 1e12:,.1f} TFLOPS."
        )
    if row := found.get("prefill"):
        share = f", {100 * row['share_of_gemm']:.0f} % of the GEMM's rate" if "share_of_gemm" in row else ""
        said.append(f"Prefill of {row['tokens']:,} tokens: {row['tokens_per_s']:,.0f} tokens/s{share}.")
    if row := found.get("engine"):
        said.append(
            f"Workload of {row['requests']} requests, engine alone: {row['tokens_per_s']:,.0f} tokens/s; first token "
            f"after {_quantiles(row['ttft_ms'])}, between tokens {_quantiles(row['itl_ms'])}."
        )
    if row := found.get("generate_static_16"):
        times = (
            f"; the engine is {ratios['workload_to_static_16']:.2f}× that" if "workload_to_static_16" in ratios else ""
        )
        said.append(f"transformers in static batches of 16: {row['tokens_per_s']:,.0f} tokens/s{times}.")
    if row := found.get("generate_one"):
        times = f"; the engine is {ratios['batch_1_to_generate']:.2f}× that" if "batch_1_to_generate" in ratios else ""
        said.append(f"transformers, one sequence: {row['tokens_per_s']:,.1f} tokens/s{times}.")
    if row := found.get("farm"):
        times = f", {ratios['farm_to_engine']:.3f} of the engine alone" if "farm_to_engine" in ratios else ""
        said.append(f"The same workload through the whole farm: {row['tokens_per_s']:,.0f} tokens/s{times}.")
    return said


def chart(found: Record) -> str:
    """Decode by batch: what was reached, before the bar of what the rate of reading would allow."""
    rows = found["decode"]
    allowed = [row["tokens_per_s"] / row.get("share_of_floor", 1.0) for row in rows]
    most = max([*allowed, *(row["tokens_per_s"] for row in rows)])
    height = TOP + PITCH * len(rows) + 8
    title = f"decode tokens/s by batch, Bloom-{found['model']['name']} {found['dtype']}, {found['device']['name']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        _text(0, 20, title, weight="bold"),
    ]
    for number, (row, limit) in enumerate(zip(rows, allowed, strict=True)):
        y, scale = TOP + PITCH * number, (WIDTH - LEFT - RIGHT) / most
        reached = f"{row['tokens_per_s']:,.0f}"
        reached += f"  ({100 * row['share_of_floor']:.0f} % of the floor)" if "share_of_floor" in row else ""
        parts += [
            _text(LEFT - 10, y + 15, f"batch {row['batch']}", anchor="end"),
            f'<rect x="{LEFT}" y="{y}" width="{limit * scale:.1f}" height="{BAR}" rx="3" fill="{FLOOR}"/>',
            f'<rect x="{LEFT}" y="{y}" width="{row["tokens_per_s"] * scale:.1f}" height="{BAR}" rx="3" fill="{OURS}"/>',
            _text(LEFT + max(limit, row["tokens_per_s"]) * scale + 8, y + 15, reached),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _decode_table(found: Record) -> str:
    lines = ["| batch | context | ms a step | tokens/s | floor, ms | share of the floor |", "|--:|--:|--:|--:|--:|--:|"]
    for row in found["decode"]:
        floor = (f"{row['floor_ms']:.2f}", f"{100 * row['share_of_floor']:.0f} %") if "floor_ms" in row else ("–", "–")
        cells = (
            str(row["batch"]),
            f"{row['context']:,}",
            f"{row['step_ms']:.2f}",
            f"{row['tokens_per_s']:,.0f}",
            *floor,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _quantiles(found: dict[str, float]) -> str:
    return f"{found['p50']:,.1f} ms (p99 {found['p99']:,.1f})"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {place} fill="{INK}">{escape(text)}</text>'
