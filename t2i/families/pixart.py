"""PixArt-alpha and PixArt-Sigma: transformer with learned variances, one T5 encoder, DDPM noise.

Conventions (diffusers `PixArtAlphaPipeline`, `PixArtSigmaPipeline`; Chen et al. 2023, arXiv:2310.00426, and 2024,
arXiv:2403.04692):
  prompt        lower case, white space at the ends removed, nothing else changed; padded to 120 tokens (alpha) or 300
                (Sigma) and cut there, end token kept; last hidden state, and the attention mask, which the denoiser
                heeds too
  cleaning      off, in training and in sampling. The pipelines clean by default, but only where two optional packages
                happen to be installed; and what they clean away (links, words with digits, Chinese, "download") takes
                trigger words along. `sampling_options` says so to the pipeline
  unconditional the empty prompt
  sizes         only transformers with `use_additional_conditions` (the 1024 px alpha) are told any: height and width
                in pixels and height / width, all of the crop that is trained on, as sampling tells those of the picture
  latents       AutoencoderKL posterior times `scaling_factor` (alpha 0.18215, Sigma 0.13025), sampled in training (the
                recipe's `posterior`); no shift
  noise         the scheduler's betas, epsilon; timesteps are integers 0 .. 999, uniform in training; the second half of
                the output, the learned variance, is neither trained nor sampled with
  resolution    sampled as asked for; the pipelines' mapping to their own list of sizes is off (`sampling_options`)
  LoRA          attention projections, self and cross; files go through peft, the pipelines have no `load_lora_weights`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from t2i.encoder_texts import EncoderPrompt, texts_for
from t2i.errors import ModelError
from t2i.families import latents as autoencoder
from t2i.families.base import Conditioning, Dtypes, FamilyFacts, NativeLayer, Posterior
from t2i.families.clip import count_longer
from t2i.families.loading import load_pipeline
from t2i.families.tokens import moved, padded_tokens
from t2i.families.transformer import check_text_to_image
from t2i.noise import DDPM

if TYPE_CHECKING:
    from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline

TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""Pipeline class -> token limit: what each was trained with, and its `encode_prompt`'s default."""
_TOLD_SIZES = 128
"""The sample_size at which the alpha pipeline, and no other, tells its transformer sizes."""
_BLOCK, _EMBEDDERS = "transformer_blocks.{}", "adaln_single.emb"
_NATIVE_LAYERS = (
    NativeLayer("blocks.{}.attn.qkv", tuple(f"{_BLOCK}.attn1.to_{x}" for x in "qkv")),
    NativeLayer("blocks.{}.attn.proj", (f"{_BLOCK}.attn1.to_out.0",)),
    NativeLayer("blocks.{}.cross_attn.q_linear", (f"{_BLOCK}.attn2.to_q",)),
    NativeLayer("blocks.{}.cross_attn.kv_linear", tuple(f"{_BLOCK}.attn2.to_{x}" for x in "kv")),
    NativeLayer("blocks.{}.cross_attn.proj", (f"{_BLOCK}.attn2.to_out.0",)),
    NativeLayer("blocks.{}.mlp.fc1", (f"{_BLOCK}.ff.net.0.proj",)),
    NativeLayer("blocks.{}.mlp.fc2", (f"{_BLOCK}.ff.net.2",)),
    NativeLayer("x_embedder.proj", ("pos_embed.proj",)),
    NativeLayer("y_embedder.y_proj.fc1", ("caption_projection.linear_1",)),
    NativeLayer("y_embedder.y_proj.fc2", ("caption_projection.linear_2",)),
    NativeLayer("t_embedder.mlp.0", (f"{_EMBEDDERS}.timestep_embedder.linear_1",)),
    NativeLayer("t_embedder.mlp.2", (f"{_EMBEDDERS}.timestep_embedder.linear_2",)),
    NativeLayer("csize_embedder.mlp.0", (f"{_EMBEDDERS}.resolution_embedder.linear_1",)),
    NativeLayer("csize_embedder.mlp.2", (f"{_EMBEDDERS}.resolution_embedder.linear_2",)),
    NativeLayer("ar_embedder.mlp.0", (f"{_EMBEDDERS}.aspect_ratio_embedder.linear_1",)),
    NativeLayer("ar_embedder.mlp.2", (f"{_EMBEDDERS}.aspect_ratio_embedder.linear_2",)),
    NativeLayer("t_block.1", ("adaln_single.linear",)),
    NativeLayer("final_layer.linear", ("proj_out",)),
)
"""Names of the authors' transformer."""


class PixArt:
    """A loaded PixArt-alpha or PixArt-Sigma checkpoint."""

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        name="pixart",
        pipeline_class="PixArtAlphaPipeline",
        denoiser="transformer",
        guidance_scale=4.5,
        text_encoders=("text_encoder",),
        encoder_names=("t5",),
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        text_encoder_lora_targets=(),
        kohya_prefixes=(),
        comfyui_prefixes=(("transformer", "diffusion_model"), ("text_encoder", "text_encoders.t5xxl.transformer")),
        native_layers=_NATIVE_LAYERS,
        takes_sizes=True,
        loads_lora_files=False,
    )

    def __init__(self, pipeline: PixArtAlphaPipeline | PixArtSigmaPipeline) -> None:
        check_text_to_image(pipeline)
        _check_noise_and_sizes(pipeline)
        self.pipeline = pipeline
        self.noise = DDPM.from_scheduler(pipeline.scheduler, pipeline.transformer.config["patch_size"])

    @classmethod
    def load(cls, folder: str, *, dtype: Dtypes, random_seed: int | None = None) -> PixArt:
        return cls(load_pipeline(folder, cls.facts, dtype=dtype, random_seed=random_seed))

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.transformer

    @property
    def pixel_multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.pipeline.transformer.config["patch_size"]

    @property
    def default_size(self) -> int:
        return self.pipeline.transformer.config["sample_size"] * self.pipeline.vae_scale_factor

    @property
    def token_limit(self) -> int:
        """Tokens that the text encoder reads, the end mark included."""
        return TOKENS[type(self.pipeline).__name__]

    @property
    def sampling_options(self) -> Mapping[str, object]:
        """Arguments of the pipeline's call by which it treats prompts and sizes as training does."""
        return {
            "clean_caption": False,
            "use_resolution_binning": False,
            "max_sequence_length": self.token_limit,
        }

    def encode_prompts(self, prompts: Sequence[EncoderPrompt]) -> Conditioning:
        encoder = self.pipeline.text_encoder
        tokens, mask = padded_tokens(self.pipeline.tokenizer, _prepared(prompts), self.token_limit)
        mask = moved(mask, encoder.device)
        return Conditioning(encoder(moved(tokens, encoder.device), attention_mask=mask)[0], mask=mask)

    def count_truncated(self, prompts: Sequence[EncoderPrompt]) -> dict[str, int]:
        return {"text_encoder": count_longer(self.pipeline.tokenizer, _prepared(prompts), self.token_limit)}

    def encode_images(self, pixels: Tensor) -> Posterior:
        return autoencoder.encode_images(self.pipeline.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode_latents(self.pipeline.vae, latents)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        prediction = self.pipeline.transformer(
            noisy,
            encoder_hidden_states=conditioning.prompt_embeds,
            encoder_attention_mask=conditioning.mask,
            timestep=timesteps,
            added_cond_kwargs=self._sizes(conditioning),
        ).sample
        # The other half, where there is one, is the learned variance.
        return prediction[:, : noisy.shape[1]]

    def _sizes(self, conditioning: Conditioning) -> dict[str, Tensor | None]:
        """What the transformer is told about sizes: `resolution` [B, 2] and `aspect_ratio` [B, 1], or nothing."""
        if not self.pipeline.transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        if conditioning.sizes is None:
            raise ModelError("pixart: the conditioning holds no sizes; give it those of the images (`with_sizes`).")
        crop = conditioning.sizes[:, 4:6].float()
        dtype = conditioning.prompt_embeds.dtype
        return {"resolution": crop.to(dtype), "aspect_ratio": (crop[:, :1] / crop[:, 1:]).to(dtype)}


def _prepared(prompts: Sequence[EncoderPrompt]) -> list[str]:
    """The prompts as the pipelines' `_text_preprocessing` leaves them without cleaning."""
    return [prompt.lower().strip() for prompt in texts_for(prompts, "t5")]


def _check_noise_and_sizes(pipeline: PixArtAlphaPipeline | PixArtSigmaPipeline) -> None:
    """Raise ModelError for noise that is not DDPM's, and for a transformer that could not be sampled with."""
    name, transformer = type(pipeline).__name__, pipeline.transformer
    if getattr(pipeline.scheduler, "alphas_cumprod", None) is None:
        scheduler = type(pipeline.scheduler).__name__
        raise ModelError(f"{scheduler} holds no noise of DDPM; expected a scheduler for epsilon or v_prediction.")
    is_told = name == "PixArtAlphaPipeline" and transformer.config["sample_size"] == _TOLD_SIZES
    if transformer.use_additional_conditions and not is_told:
        raise ModelError(
            f"the transformer wants to be told sizes, and {name} does so at sample_size {_TOLD_SIZES} of alpha only; "
            "set use_additional_conditions to false in transformer/config.json if it was trained without."
        )
