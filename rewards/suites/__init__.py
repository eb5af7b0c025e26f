"""Published prompt sets, and one of this project's own: prompts with ids and categories, and questions where known."""

from rewards.suites.reading import SUITES, Suite, SuitePrompt, load_suite, write_prompts

__all__ = ["SUITES", "Suite", "SuitePrompt", "load_suite", "write_prompts"]
