"""One meaning of beta, and the numbers that other tools write for the same strength.

Here beta multiplies half the difference of *mean* squared errors: the logit of a pair is
  beta * 1/2 * [(reference error - error) of the chosen - the same of the rejected],
so one unit of mean squared error moves it by beta / 2. That does not depend on the resolution; a sum over the latents
would. The paper's beta has a factor T of timesteps in it (Wallace et al. 2023, arXiv:2311.12908, equation 14), which
its authors' code leaves out: the number in use, 5000, is the code's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from t2i.config import FrozenModel

Tool = Literal[
    "diffusion_dpo", "diffusers_sd15", "diffusers_sdxl", "diffusion_kto", "flow_grpo", "flow_factory", "verl_omni",
    "simpletuner",
]  # fmt: skip


@dataclass(frozen=True)
class Convention:
    """How a tool's beta enters the logit."""

    halved: bool
    """It multiplies half the difference of errors, as here; else the whole."""
    summed: bool = False
    """The errors are sums over the latents, not means."""

    def beta(self, value: float, latent_elements: int) -> float:
        """Our beta for the tool's value, at a number of latent elements C * h * w."""
        return value * (1 if self.halved else 2) * (latent_elements if self.summed else 1)


CONVENTIONS: dict[Tool, Convention] = {
    "diffusion_dpo": Convention(halved=True),
    "diffusers_sd15": Convention(halved=False),
    "diffusers_sdxl": Convention(halved=True),
    "diffusion_kto": Convention(halved=False),
    "flow_grpo": Convention(halved=True),
    "flow_factory": Convention(halved=True),
    "verl_omni": Convention(halved=True),
    "simpletuner": Convention(halved=True, summed=True),
}


class BetaFrom(FrozenModel):
    """A value from another tool's configuration."""

    tool: Tool
    """Whose convention `value` follows."""
    value: float = Field(gt=0)
    """What its beta was set to."""

    def beta(self, latent_elements: int) -> float:
        """Our beta that gives the same logits. latent_elements: C * h * w of the images that are trained on."""
        return CONVENTIONS[self.tool].beta(self.value, latent_elements)


def resolve_beta(beta: float | None, beta_from: BetaFrom | None, latent_elements: int) -> float:
    """The beta in force, of the two fields of which exactly one is given."""
    if beta_from is not None:
        return beta_from.beta(latent_elements)
    if beta is None:
        raise ValueError("neither beta nor beta_from is given")
    return beta


def check_one_beta(beta: float | None, beta_from: BetaFrom | None) -> None:
    """Raise ValueError unless exactly one of the two is given."""
    if (beta is None) == (beta_from is None):
        raise ValueError(
            "give exactly one of `beta` (multiplies half the difference of mean squared errors; 5000 in the authors' "
            "runs of epsilon models, 100 to 2000 are usual for flow) and `beta_from` (another tool's value)"
        )
