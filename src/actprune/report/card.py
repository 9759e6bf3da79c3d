"""The model card: README.md of a network that is passed on, with the figures that were measured."""

from __future__ import annotations

from actprune.plan import Plan
from actprune.report.page import escaped, facts, md_table, ranges, stage_rows, title
from actprune.report.record import Report
from actprune.report.table import WIDTHS, headings, proof_line, width_cells


def card(report: Report, plan: Plan, library: str = "actprune") -> str:
    """The text of README.md.

    Args:
        library: "transformers" for a folder that `from_pretrained` loads; else the folder is one of `actprune.load`.
    """
    dense, final = report.dense, report.final
    shares = [f"{100 * after / max(before, 1):.1f} % of the {name}" for name, before, after in (
        ("parameters", dense.params, final.params), ("multiply-adds", dense.macs, final.macs))]  # fmt: skip
    header = ["---", f"library_name: {library}", "tags:", "- pruned", "- structured-pruning", "- actprune", "---", ""]
    use = (
        [
            "from transformers import AutoModel  # or the class for its task",
            'model = AutoModel.from_pretrained("FOLDER")',
        ]
        if library == "transformers"
        else ["import actprune", 'model = actprune.load("FOLDER", dense_model)  # built as before pruning']
    )
    return (
        "\n".join(
            [
                *header,
                f"# {escaped(report.model)}, pruned",
                "",
                f"A smaller {escaped(report.model)} with {' and '.join(shares)}, made by structured pruning "
                f"({escaped(title(report))}) with actprune {escaped(report.versions.get('actprune', ''))}.",
                "",
                "## Measured",
                "",
                *md_table(
                    ("network", *headings(report.in_percent)), ([name, *row] for name, row in stage_rows(report))
                ),
                f"- {escaped(proof_line(report))}",
                *(f"- {escaped(note)}" for note in report.notes),
                "",
                "The metric is that of the recipe's own evaluate(model), on its own data. Milliseconds are "
                "those of the machine named below.",
                "",
                "## Use",
                "",
                "```python",
                *use,
                "```",
                "",
                "## Widths",
                "",
                *md_table(
                    (*WIDTHS, "kept units"),
                    (
                        [*width_cells(row), ranges(plan.groups[row.name].kept)]
                        for row in report.groups
                        if row.name in plan.groups
                    ),
                ),
                "## How it was made",
                "",
                *md_table(("", ""), facts(report)),
            ]
        ).rstrip()
        + "\n"
    )
