"""The frontier of speed and fidelity, as a plot."""

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hybridiff.errors import UsageError
from jobs.benchmark.report import Report, Row, Table

REFERENCES = {"baseline": "plain guidance, same steps", "converged": "converged images"}


def check_plot(path: str | None) -> None:
    """Refuses a plot where matplotlib is missing, before anything is measured.

    Raises:
        UsageError: matplotlib is missing.
    """
    if path is not None and find_spec("matplotlib") is None:
        raise UsageError(f"plot is {path!r}; allowed: none, as matplotlib is not installed (pip install 'hybridiff[bench]')")


def line_label(row: Row) -> str:
    """The line of the frontier that a row belongs to."""
    name = "fewer steps" if row.schedule == "full" else row.schedule
    guidance = row.options.get("guidance")
    parts = [f"{name} ({guidance})" if guidance else name, row.scheduler, f"group of {row.group_size}"]
    return ", ".join(filter(None, parts))


def points(table: Table, reference: str) -> dict[str, list[tuple[float, float]]]:
    """(speed-up, median PSNR in dB) of every row but the baseline, by label of the line, in order of speed-up.

    The speed-up is the measured one, else the ideal one.
    """
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in table.rows[1:]:
        similarity = getattr(row.fidelity, reference) if row.fidelity else None
        if similarity is not None:
            speedup = row.speed.speedup if row.speed else row.measurement.ideal
            lines[line_label(row)].append((speedup, similarity.psnr_median))
    return {label: sorted(values) for label, values in lines.items()}


def write_plot(report: Report, path: str) -> None:
    """Writes a PNG with a panel for each setting and reference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert report.config.fidelity is not None
    references = [name for name in REFERENCES if name == "baseline" or report.config.fidelity.converged]
    figure = Figure(figsize=(9.0 * len(references), 4.5 * len(report.tables)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(report.tables), len(references), squeeze=False)
    for table, line in zip(report.tables, panels, strict=True):
        for reference, panel in zip(references, line, strict=True):
            _panel(panel, table, reference, timed=report.config.timing is not None)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _panel(panel: Any, table: Table, reference: str, timed: bool) -> None:
    markers = "osD^vP*X"
    for index, (name, line) in enumerate(sorted(points(table, reference).items())):
        speedups, levels = zip(*line, strict=True)
        panel.plot(speedups, levels, marker=markers[index % len(markers)], label=name)
    panel.set_xlabel("speed-up, measured" if timed else "speed-up, ideal (by FLOPs)")
    panel.set_ylabel("median PSNR, dB")
    setting = f"{table.setting.steps} steps, guidance {table.setting.guidance_scale:g}"
    panel.set_title(f"by {REFERENCES[reference]}; {setting}", fontsize=10)
    panel.grid(alpha=0.3)
    if panel.lines:
        panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
