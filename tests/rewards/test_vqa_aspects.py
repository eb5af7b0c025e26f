"""Images judged for one aspect by a VQA model: labels for a reward model."""

from __future__ import annotations

import numpy as np
import pytest

import rewards
from rewards.errors import InputError
from rewards.faithfulness.vqascore import ASPECTS


@pytest.mark.parametrize("aspect", ASPECTS)
def test_an_aspect_is_a_question_of_its_own_and_tells_itself(aspect: str, images: list, prompts: list[str]):
    scorer = rewards.load({"name": "vqascore", "vqa": "asking:Guessing", "aspect": aspect})
    asked = rewards.load({"name": "vqascore", "vqa": "asking:Guessing", "template": ASPECTS[aspect]})
    assert scorer.name == f"vqascore_{aspect}"
    np.testing.assert_array_equal(scorer.score(images, prompts), asked.score(images, prompts))
    with pytest.raises(InputError, match="give one"):
        rewards.load({"name": "vqascore", "aspect": aspect, "template": "Is {prompt} here?"})


def test_an_unknown_aspect_is_told_with_the_known_ones():
    with pytest.raises(InputError, match="unknown aspect 'beauty'; expected one of prompt_following, aesthetic, "):
        rewards.load({"name": "vqascore", "aspect": "beauty"})
