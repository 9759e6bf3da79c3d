"""The rows as Markdown: a summary, every model, the failures, and what keeps parameters from being pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]

RIVALS = {"quick": "Torch-Pruning, quick start", "helped": "Torch-Pruning, helped"}


def markdown(rows: Sequence[Row]) -> str:
    """The whole text, one section after the other; the summary comes first."""
    sections = [
        "# Coverage",
        INTRODUCTION,
        table(SUMMARY, summary(rows)),
        "## Models",
        table(MODELS, [model_cells(row) for row in rows]),
        "## Failures",
        table(("suite", "model", "reason"), failures(rows)) if failures(rows) else "None.",
        "## Attention heads that could not be removed",
        table(("suite", "model", "reason"), lost_heads(rows)) if lost_heads(rows) else "None.",
        "## Quality of the pretrained models",
        table(QUALITY, quality(rows)) if quality(rows) else "Not measured.",
        "## Why parameters are frozen",
        REASONS,
        table(("reason", "models", "parameters in frozen tensors", "in tensors that others cut"), frozen(rows)),
        "## Ops without a rule",
        table(("op", "models", "for example"), unknown(rows)) if unknown(rows) else "None.",
    ]
    return "\n\n".join(sections) + "\n"


INTRODUCTION = (
    'Weights are random. `keep="units=70%"` by L2 norm. A model is ok where it was captured, cut and proved in float64 '
    "on real and on redrawn weights, where the cut class runs in eval mode, takes a training step and another batch "
    "size, and where fewer than 0.9 of the parameters are left. Torch-Pruning 1.6.1 removes 30 % of the channels by L2 "
    "norm in 60 s and 14 GB a model; it is ok where the pruned model runs, trains and takes another batch size with "
    "fewer than 0.9 of the parameters, whatever it computes. Heads: one head of one layer removed, proved."
)

REASONS = (
    "Over all suites. A parameter counts under every reason of its dimensions, so the columns add up to more than all "
    "parameters. Module paths, files and numbers are left out."
)

SUMMARY = ("suite", "models", "ok", *RIVALS.values(), "one head removed", "seconds, median", "peak GB, largest")

MODELS = (
    "suite",
    "model",
    "ok",
    "capture",
    "parameters",
    "left",
    "prunable",
    "proof: relative error",
    "head removed",
    "frozen by trial",
    "s: capture",
    "s: plan",
    "s: total",
    "peak GB",
    *RIVALS.values(),
)


QUALITY = (
    "model",
    "metric",
    "dense",
    "ours, no fine-tune",
    "parameters left",
    "Torch-Pruning",
    "BatchNorm re-estimated",
    "parameters left",
)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """One line per suite, and one for all."""
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    lines = [_summed(suite, [row for row in rows if row["suite"] == suite]) for suite in suites]
    return [*lines, _summed("all", rows)] if len(suites) > 1 else lines


def _summed(name: str, rows: Sequence[Row]) -> list[str]:
    rivals = [_share([row[rival] for row in rows if row.get(rival)]) for rival in RIVALS]
    with_heads = [{"ok": row.get("heads_ok", False)} for row in rows if row.get("heads_groups") or row.get("has_heads")]
    seconds = sorted(row.get("total_seconds", 0.0) for row in rows)
    median = f"{seconds[len(seconds) // 2]:.1f}" if seconds else ""
    peak = max((row.get("peak_gb", 0.0) for row in rows), default=0.0)
    return [name, str(len(rows)), _share(rows), *rivals, _share(with_heads), median, f"{peak:.1f}"]


def _share(rows: Sequence[Row]) -> str:
    return f"{sum(bool(row['ok']) for row in rows)} of {len(rows)}" if rows else "–"


def model_cells(row: Row) -> list[str]:
    """One line of the table of models; what was not reached stays empty."""
    seconds = row.get("seconds", {})
    return [
        row["suite"],
        row["model"],
        _yes(row["ok"]),
        row.get("capture", ""),
        _cell(row, "model_params", lambda n: f"{n:,}"),
        _cell(row, "params_left", lambda x: f"{100 * x:.1f} %"),
        _cell(row, "prunable", lambda x: f"{100 * x:.1f} %"),
        _error(row),
        _heads(row),
        str(len(row["frozen_by_trial"])) if row.get("frozen_by_trial") else "",
        f"{seconds['capture']:.1f}" if "capture" in seconds else "",
        f"{seconds['plan']:.1f}" if "plan" in seconds else "",
        _cell(row, "total_seconds", lambda x: f"{x:.1f}"),
        _cell(row, "peak_gb", lambda x: f"{x:.1f}"),
        *(_yes(row[rival]["ok"]) if row.get(rival) else "" for rival in RIVALS),
    ]


def _cell(row: Row, name: str, shown: Callable[[Any], str]) -> str:
    return shown(row[name]) if row.get(name) is not None else ""


def _error(row: Row) -> str:
    if "proof" not in row:
        return ""
    return f"{max(row['real_error'], row['redrawn_error']):.0e}" if row["proof"] else "FAILED"


def _heads(row: Row) -> str:
    if row.get("heads_groups"):
        return _yes(row.get("heads_ok"))
    return "not found" if row.get("has_heads") else ""


def _yes(ok: Any) -> str:
    return "yes" if ok else "**no**"


def failures(rows: Sequence[Row]) -> list[list[str]]:
    return [[row["suite"], row["model"], short(row.get("failure"))] for row in rows if not row["ok"]]


def lost_heads(rows: Sequence[Row]) -> list[list[str]]:
    """Models whose heads were found and none could be removed; those without such groups are in the big table."""
    return [
        [row["suite"], row["model"], short(row.get("heads_failure"))]
        for row in rows
        if row.get("heads_groups") and not row.get("heads_ok")
    ]


def quality(rows: Sequence[Row]) -> list[list[str]]:
    """Two lines per pretrained model, one for each size."""
    lines: list[list[str]] = []
    for row in rows:
        found = row.get("quality", {})
        for budget in found.get("budgets", ()):
            ours, rival = budget["ours"], budget["rival"]
            lines.append([row["model"], found["metric"], f"{found['dense']:.3f}", *_scored(ours), *_scored(rival)])
            lines[-1].insert(6, _cell(rival, "metric_with_batchnorm_reestimated", lambda x: f"{x:.3f}"))
    return lines


def _scored(run: Row) -> list[str]:
    if "metric" not in run:
        return [short(run.get("error"), 60), ""]
    helped = " (helped)" if run.get("helped") else ""
    return [f"{run['metric']:.3f}{helped}", f"{100 * run['params_left']:.1f} %"]


def short(text: str | None, most: int = 220) -> str:
    text = " ".join((text or "unknown").split())
    return text if len(text) <= most else text[: most - 1] + "…"


def frozen(rows: Sequence[Row]) -> list[list[str]]:
    """The frozen reasons of all models, most parameters in wholly frozen tensors first."""
    whole: dict[str, int] = {}
    part: dict[str, int] = {}
    models: dict[str, int] = {}
    for row in rows:
        for reason, counts in row.get("frozen_reasons", {}).items():
            whole[reason] = whole.get(reason, 0) + counts["whole"]
            part[reason] = part.get(reason, 0) + counts["part"]
            models[reason] = models.get(reason, 0) + 1
    order = sorted(models, key=lambda reason: (-whole[reason], -part[reason], reason))
    return [[short(reason), str(models[reason]), f"{whole[reason]:,}", f"{part[reason]:,}"] for reason in order]


def unknown(rows: Sequence[Row]) -> list[list[str]]:
    """Ops without a rule, those of most models first."""
    models: dict[str, list[str]] = {}
    for row in rows:
        for op in row.get("unknown_ops", ()):
            models.setdefault(op, []).append(f"{row['suite']}/{row['model']}")
    order = sorted(models, key=lambda op: (-len(models[op]), op))
    return [[op, str(len(models[op])), ", ".join(models[op][:3])] for op in order]
