"""Faithfulness to the prompt by questions: TIFA, DSG, pairs of opposite questions, and VQAScore.

The aggregators work on questions and answers from anywhere; no model is needed for them.
"""

from rewards.faithfulness.backends import VqaBackend, YesNo, load_backend
from rewards.faithfulness.dsg import dependent_points, dsg_score
from rewards.faithfulness.pn_vqa import pn_points, yes_bias
from rewards.faithfulness.questions import Defect, PromptQuestions, Question, QuestionBook
from rewards.faithfulness.readers import load_questions, write_questions
from rewards.faithfulness.tifa import Graded, points_by_category, tifa_score

__all__ = [
    "Defect",
    "Graded",
    "PromptQuestions",
    "Question",
    "QuestionBook",
    "VqaBackend",
    "YesNo",
    "dependent_points",
    "dsg_score",
    "load_backend",
    "load_questions",
    "pn_points",
    "points_by_category",
    "tifa_score",
    "write_questions",
    "yes_bias",
]
