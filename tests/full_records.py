"""Records that use every field."""

from __future__ import annotations

from t2i.records import Caption, CaptionedImage, ImageOrigin, Origin, Review

ORIGIN = Origin(
    "lab/vlm",
    "0" * 40,
    "apache-2.0",
    "transformers 5.23.0",
    "Describe the image.",
    "9f" * 32,
    {"temperature": 0.0, "max_tokens": 256.0},
    "stop",
    "512x384 of 1024x768",
    ("1" * 32, "2" * 32),
)
FULL = CaptionedImage(
    "ab" * 16,
    "images/a b.png",
    640,
    480,
    (
        Caption("alt", 'a "cat", 猫 & more', "web"),
        Caption(
            "dense",
            "a cat\non a mat",
            "vlm",
            ORIGIN,
            "en",
            {"clip": 7, "t5": 9},
            {"tifa": 0.1 + 0.2},
            ("trimmed",),
            Review("edited", "ann", "2026-01-02", "a cat"),
        ),
    ),
    {"tags": ["x"], "none": None},
    ImageOrigin("https://example.org/a", "set", "CC-BY-4.0", "Ann", "2026-01-01", "2026-01-03"),
    {"aesthetic": 5.5},
    ("blurred",),
)
BARE = CaptionedImage("cd" * 16, "b.jpg", 8, 9)
