"""Tiny random checkpoints in the published formats of the scorers that are not plain CLIP, built in code."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch

WIDTH, PATCH, IMAGE, LAYERS = 64, 8, 32, 2
"""Of the BLIP vision transformer; one attention head."""
TEXT_WIDTH, TEXT_HEADS = 32, 4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Weights of clearly different values; those of layer norms near 1."""
    numbers = generator(seed)
    state = {}
    for name, shape in shapes.items():
        fan_in = shape[-1] if len(shape) == 2 else 16
        state[name] = torch.randn(shape, generator=numbers) * (1.2 / fan_in**0.5)
        if any(part in name for part in ("ln_", "norm", "LayerNorm")) and name.endswith("weight"):
            state[name] = 1.0 + 0.2 * state[name]
    return state


def write_clip(folder: Path) -> Path:
    """A CLIPModel with random weights: 32 px images, 16 tokens."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=16, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(
        text_config=layers | text,
        vision_config=layers | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Larger than the usual 0.02, so that different inputs get clearly different embeddings.
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


def _vocabulary() -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def write_open_clip(path: Path, base: Path) -> dict[str, torch.Tensor]:
    """An open_clip checkpoint of the architecture of `base` (32 wide, 2 layers, 8 px patches), under "state_dict"."""
    vocabulary = json.loads((base / "config.json").read_text())["text_config"]["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (16, 32),
        "text_projection": (32, 16),
        "token_embedding.weight": (vocabulary, 32),
        "ln_final.weight": (32,),
        "ln_final.bias": (32,),
        "visual.class_embedding": (32,),
        "visual.positional_embedding": (17, 32),
        "visual.proj": (32, 16),
        "visual.conv1.weight": (32, 3, 8, 8),
        "visual.ln_pre.weight": (32,),
        "visual.ln_pre.bias": (32,),
        "visual.ln_post.weight": (32,),
        "visual.ln_post.bias": (32,),
    }
    for tower in ("visual.transformer.resblocks", "transformer.resblocks"):
        for layer in range(2):
            block = f"{tower}.{layer}"
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{block}.{norm}.weight": (32,), f"{block}.{norm}.bias": (32,)}
            shapes |= {f"{block}.attn.in_proj_weight": (96, 32), f"{block}.attn.in_proj_bias": (96,)}
            shapes |= {f"{block}.attn.out_proj.weight": (32, 32), f"{block}.attn.out_proj.bias": (32,)}
            shapes |= {f"{block}.mlp.c_fc.weight": (64, 32), f"{block}.mlp.c_fc.bias": (64,)}
            shapes |= {f"{block}.mlp.c_proj.weight": (32, 64), f"{block}.mlp.c_proj.bias": (32,)}
    state = random_state(shapes, 1) | {"logit_scale": torch.tensor(4.0)}
    torch.save({"epoch": 3, "state_dict": state}, path)
    return state


def write_bert_tokenizer(folder: Path) -> Path:
    """One token a letter."""
    from transformers import BertTokenizer

    letters = string.ascii_lowercase
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


def write_image_reward(folder: Path) -> dict[str, torch.Tensor]:
    """ImageReward.pt and med_config.json, the weights under the names of the authors' code."""
    config = {"vocab_size": 60, "hidden_size": TEXT_WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": TEXT_HEADS, "max_position_embeddings": 64, "layer_norm_eps": 1e-12}
    config |= {"hidden_act": "gelu", "pad_token_id": 0, "architectures": ["BertModel"], "add_cross_attention": True}
    (folder / "med_config.json").write_text(json.dumps(config))
    shapes = {f"blip.visual_encoder.{name}": shape for name, shape in _vision_shapes().items()}
    shapes |= {f"blip.text_encoder.{name}": shape for name, shape in _text_shapes().items()}
    shapes |= {"blip.vision_proj.weight": (16, WIDTH), "blip.text_proj.weight": (16, TEXT_WIDTH)}
    for position, (inner, outer) in {0: (TEXT_WIDTH, 24), 2: (24, 12), 4: (12, 8), 6: (8, 4), 7: (4, 1)}.items():
        shapes |= {f"mlp.layers.{position}.weight": (outer, inner), f"mlp.layers.{position}.bias": (outer,)}
    state = random_state(shapes, 2)
    torch.save(state | {"blip.text_encoder.embeddings.position_ids": torch.arange(64)[None]}, folder / "ImageReward.pt")
    return state


def _vision_shapes() -> dict[str, tuple[int, ...]]:
    patches = (IMAGE // PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, patches + 1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        linear |= {"mlp.fc1": (2 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 2 * WIDTH)}
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.weight": (WIDTH,), f"{block}.{name}.bias": (WIDTH,)}
    return shapes


def _text_shapes() -> dict[str, tuple[int, ...]]:
    width = TEXT_WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (60, width),
        "embeddings.position_embeddings.weight": (64, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}"
        linear = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        linear |= {"crossattention.self.query": (width, width)}
        linear |= {f"crossattention.self.{name}": (width, WIDTH) for name in ("key", "value")}
        linear |= {f"{kind}.output.dense": (width, width) for kind in ("attention", "crossattention")}
        linear |= {"intermediate.dense": (64, width), "output.dense": (width, 64)}
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    return shapes


def write_siglip(folder: Path) -> Path:
    """A SiglipModel with random weights: 32 px images, 12 tokens, one token a letter."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokens = ["<pad>", "</s>", "<unk>", *string.ascii_lowercase]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=12
    )
    fast.save_pretrained(folder)
    SiglipImageProcessorPil(
        size={"height": IMAGE, "width": IMAGE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 1}
    config = SiglipConfig(
        text_config=layers | text | {"pad_token_id": 0},
        vision_config=layers | {"image_size": IMAGE, "patch_size": PATCH},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiglipModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            model.logit_scale.fill_(2.0)
            model.logit_bias.fill_(-1.0)
    model.save_pretrained(folder)
    return folder


def write_aesthetic_head(path: Path) -> Path:
    """Two layers without activation on 16 numbers, named as those of aesthetic v2."""
    shapes: dict[str, tuple[int, ...]] = {"layers.0.weight": (8, 16), "layers.0.bias": (8,)}
    torch.save(random_state(shapes | {"layers.2.weight": (1, 8), "layers.2.bias": (1,)}, 3), path)
    return path


def byte_tokens() -> list[str]:
    """The 512 tokens that every CLIP vocabulary begins with: each byte, within a word and at its end."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(f"{letter}</w>" for letter in letters)]


def write_reward_model(folder: Path, clip: Path, *, reads_prompt: bool = True, aspects: tuple[str, ...] = ()) -> Path:
    """A reward model on a copy of a CLIP with 16 numbers: a random head of two layers."""
    import shutil

    from safetensors.torch import save_file

    from rewards.reward_config import CONFIG_FILE, WEIGHTS_FILE, RewardModelConfig

    shutil.copytree(clip, folder)
    config = RewardModelConfig(16, 8, reads_prompt, aspects, "nothing: random weights")
    (folder / CONFIG_FILE).write_text(config.to_json())
    inputs = 48 if reads_prompt else 16
    shapes: dict[str, tuple[int, ...]] = {"layers.0.weight": (8, inputs), "layers.0.bias": (8,)}
    save_file(random_state(shapes | {"layers.2.weight": (max(1, len(aspects)), 8)}, 4), folder / WEIGHTS_FILE)
    return folder


def options(folder: Path, clip: Path) -> dict[str, dict[str, object]]:
    """Registered name -> options that make the scorer with a checkpoint in `folder`; only scorers that have weights."""
    import vqa_tiny

    head = str(write_aesthetic_head(folder / "head.pth"))
    write_open_clip(folder / "hps.pt", clip)
    write_image_reward(folder)
    bert = write_bert_tokenizer(folder / "bert")
    blip = {"name": "blip_vqa", "model": str(vqa_tiny.blip(folder / "blip"))}
    asking = {"questions": "asking:EveryPrompt", "vqa": "asking:Guessing", "batch_size": 5}
    own = {"model": str(clip), "batch_size": 3}
    return {
        "aesthetic": own | {"head": head},
        "aesthetic_v1": own | {"head": head},
        "clip_iqa": own,
        "clip_score": own,
        "dsg": asking,
        "hpsv2": {"model": str(folder / "hps.pt"), "base": str(clip), "batch_size": 3},
        "image_reward": {"model": str(folder), "tokenizer": str(bert), "batch_size": 3},
        "pickscore": own,
        "pn_vqa": asking | {"questions": {"name": "asking:EveryPrompt", "count": 2}, "vqa": blip},
        "reward_model": {"model": str(write_reward_model(folder / "reward", clip)), "batch_size": 3},
        "tifa": asking | {"nearest": "words"},
        "vqascore": {"vqa": blip, "batch_size": 5},
    }
