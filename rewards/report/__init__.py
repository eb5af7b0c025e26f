"""One self-contained HTML page about the scores of one or two sets of images."""

from rewards.report.collect import collect
from rewards.report.model import Report
from rewards.report.page import render, write_report

__all__ = ["Report", "collect", "render", "write_report"]
