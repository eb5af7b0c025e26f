"""Stages: one file each. Adding one is a file and a line here."""

from __future__ import annotations

from t2i.stages.base import Stage, StageContext
from t2i.stages.best_of import BestOf
from t2i.stages.caption import CaptionStage
from t2i.stages.compare import Compare
from t2i.stages.dataset import DatasetStage
from t2i.stages.export import Export
from t2i.stages.filter import Filter
from t2i.stages.frontier import Frontier
from t2i.stages.generate import Generate
from t2i.stages.merge import Merge
from t2i.stages.pair import Pair
from t2i.stages.pick import Pick
from t2i.stages.report import ReportStage
from t2i.stages.score import Score
from t2i.stages.train import Train
from t2i.stages.tune_captioner import TuneCaptioner

STAGE_TYPES: dict[str, type[Stage]] = {
    "best_of": BestOf,
    "caption": CaptionStage,
    "compare": Compare,
    "dataset": DatasetStage,
    "export": Export,
    "filter": Filter,
    "frontier": Frontier,
    "generate": Generate,
    "merge": Merge,
    "pair": Pair,
    "pick": Pick,
    "report": ReportStage,
    "score": Score,
    "train": Train,
    "tune_captioner": TuneCaptioner,
}
"""Tag in a recipe -> stage."""

__all__ = ["STAGE_TYPES", "Stage", "StageContext"]
