"""Checks of captions and images: pure functions, each with what it finds in its first line."""
