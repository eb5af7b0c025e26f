"""Write one page, one contact sheet and one table about a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from t2i.stages.base import Stage, StageContext

if TYPE_CHECKING:
    from t2i.report.model import Report

REPORT_FILE, SHEET_FILE = "report.html", "contact_sheet.png"


class ReportStage(Stage):
    """Write `report.html` (self-contained) and `contact_sheet.png`, and print the table. Computes no statistics."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "report"
    shows_names: ClassVar[bool] = True
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {
        "compare_from": ("comparison",),
        "scores_from": ("scores",),
        "train_from": ("weights",),
    }

    type: Literal["report"] = "report"
    compare_from: tuple[str, ...] = Field(min_length=1)
    """Compare stages, the most important first."""
    scores_from: tuple[str, ...] = Field(min_length=1)
    """Score stages, the baseline first: the columns of the contact sheet."""
    train_from: tuple[str, ...] = ()
    """Train stages whose curves are shown."""
    title: str = ""
    """Headline of the page; the recipe's name if empty."""
    panels: int = Field(default=12, ge=0)
    """Prompts in the contact sheet: the first ones, not the best ones."""
    extremes: int = Field(default=6, ge=0)
    """Prompts shown as worst and as most changed."""

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.report import print_comparison, write_contact_sheet, write_report
        from t2i.report.numbers import headline

        report = self._collect(context)
        write_report(report, context.folder)
        if report.panels:
            write_contact_sheet(report.panels, [arm.name for arm in report.arms], context.folder / SHEET_FILE)
        print_comparison(report.comparisons)
        return {"report": REPORT_FILE, "headline": headline(report.comparisons)}

    def _collect(self, context: StageContext) -> Report:
        from t2i.report.collect import Sources, collect_report

        sources = Sources(
            comparisons=tuple(folder for _, folder in context.inputs["compare_from"]),
            scores=tuple(context.inputs["scores_from"]),
            trainings=tuple(context.inputs.get("train_from", ())),
        )
        return collect_report(
            sources,
            title=self.title or context.recipe_name,
            recipe_name=context.recipe_name,
            panels=self.panels,
            extremes=self.extremes,
        )
