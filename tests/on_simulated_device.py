"""Run parts of the toolkit on the CPU and on the simulated device, and print what differs: one line of JSON a case.

python tests/on_simulated_device.py [CASE...]     all if none is named

Each line: the case, by how much results differ at most, relative to the largest of them, and what the host waited for
in a training step. A process of its own, because the device stays registered with torch. See test_simulated_device.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "tests/rewards")]

import numpy as np  # noqa: E402
import simulated_device  # noqa: E402
import tiny  # noqa: E402
import tiny_flow  # noqa: E402
import tiny_pairs  # noqa: E402
import tiny_scorers  # noqa: E402
import torch  # noqa: E402
import vqa_tiny  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

import rewards  # noqa: E402
from rewards.base import DifferentiableReward  # noqa: E402
from t2i import devices  # noqa: E402
from t2i.stages import train_run  # noqa: E402
from t2i.stages.train import Train  # noqa: E402
from t2i.training import checkpoint, loop, stepper, tasks  # noqa: E402

MODELS: dict[str, Callable[[], Path]] = {
    "sd1": tiny.sd1,
    "sdxl": tiny.sdxl,
    "pixart": tiny_flow.pixart,
    "sd3": tiny_flow.sd3,
    "flux": tiny_flow.flux,
}
LORA = {"type": "lora", "rank": 2}
FULL = {"type": "full", "components": ["unet"]}
Fields = dict[str, Any]


def training_cases() -> dict[str, Fields]:
    """Name -> fields of a train stage."""
    watched: Fields = {
        "loop": {"steps": 2, "batch_size": 2, "ema_decay": 0.9},
        "held_out": {"share": 0.34, "every": 2},
        "samples": {"prompts": ["a cat"], "every": 2, "sampling": {"steps": 2}},
    }
    losses: Fields = {"pseudo_huber": {"schedule": "snr"}, "weighting": {"type": "min_snr"}, "zero_terminal_snr": True}
    losses |= {"type": "denoising", "noise_offset": 0.05, "embedding_noise": 0.1}
    dpo = {"type": "diffusion_dpo", "beta": 2000}
    text_too = LORA | {"text_encoder": True}
    cases: dict[str, Fields] = {
        name: {"model": str(model()), "cache": {"text": True}} for name, model in MODELS.items()
    }
    cases |= {
        "watched": watched,
        "sdxl diffusion_dpo": {"model": str(tiny.sdxl()), "objective": dpo, "trained": text_too},
        "pixart diffusion_dpo": {"model": str(tiny_flow.pixart()), "objective": dpo},
        "every loss": {"model": str(tiny.sd1("v_prediction")), "objective": losses},
        "diffusion_kto": {"objective": {"type": "diffusion_kto", "beta": 2000}},
        "whole denoiser": {"objective": dpo, "trained": FULL},
        "speed": {
            "speed": {"gradient_checkpointing": "selective", "channels_last": True},
            "loop": {"steps": 2, "batch_size": 2, "micro_batch_size": 1},
        },
        "autoencoder": {"objective": {"type": "autoencoder"}, "trained": {"type": "full", "components": ["vae"]}},
    }
    return {name: {"model": str(tiny.sd1()), "resolution": tiny.SIZE_PX} | fields for name, fields in cases.items()}


def train(folder: Path, fields: Fields) -> dict[str, Tensor]:
    """Run a train stage; returns what it trained."""
    kind = fields.get("objective", {}).get("type", "denoising")
    on_pairs = kind in ("diffusion_dpo", "diffusion_kto", "chosen_denoising")
    source = {"pairs_from": pairs()} if on_pairs else {"data_from": tiny.captioned_photographs()}
    captions = {} if on_pairs or kind == "autoencoder" else {"captions": {"caption": 1.0}}
    steps = {"loop": {"steps": 2, "batch_size": 2}, "optimizer": {"learning_rate": 1e-3}, "trained": LORA}
    facts = tiny.run_stage(Train, folder, steps | captions | fields, source)
    if "adapter" in facts:
        return load_file(folder / facts["adapter"])
    names = sorted((folder / facts["model"]).rglob("*.safetensors"))
    return {f"{name.parent.name}/{key}": value for name in names for key, value in load_file(name).items()}


def pairs() -> Path:
    """Finished folder of a pair stage."""
    folder = tiny.temporary_folder() / "simulated" / "pair"
    return folder if folder.exists() else tiny_pairs.write_pairs(folder, count=4)


def resumed(folder: Path) -> dict[str, Tensor]:
    """A step, and another from its checkpoint."""
    fields: Fields = {"model": str(tiny.sd1()), "resolution": tiny.SIZE_PX}
    train(folder, fields | {"loop": {"steps": 1, "batch_size": 2}})
    return train(folder, fields | {"loop": {"steps": 2, "batch_size": 2}})


def sampled(name: str) -> Callable[[Path], dict[str, Tensor]]:
    """Images of a model with an adapter over it, guided away from a negative prompt where it takes one."""

    def images(folder: Path) -> dict[str, Tensor]:
        from t2i.sampling import Sampler, SamplingSettings

        settings = SamplingSettings(steps=3, width=32, height=32, negative_prompt="" if name == "flux" else "the moon")
        adapter = tiny.write_adapter(folder / "adapter.safetensors") if name == "sd1" else None
        found = Sampler.load(str(MODELS[name]()), settings, adapter=adapter).generate(["a cat", "a red cup"], [1, 2])
        return {"images": torch.from_numpy(np.stack([np.asarray(image) for image in found]).astype(np.float32))}

    return images


def examined(folder: Path) -> dict[str, Tensor]:
    """What the doctor finds."""
    from t2i.doctor import examine

    checks = list(examine(str(tiny.sd1())))
    assert all(check.passed for check in checks), checks
    return {"passed": torch.ones(len(checks))}


def rewarded(trained: Fields) -> Callable[[Path], dict[str, Tensor]]:
    """A reward model trained on pairs, and its head or the adapter of its encoder."""

    def weights(folder: Path) -> dict[str, Tensor]:
        from t2i.data.pairs import ShapesPairs, save_pairs

        folder.mkdir(parents=True)
        found = save_pairs(folder, list(ShapesPairs(count=40, preference="garden", max_objects=1).read(folder, 3)))
        fields: Fields = {
            "model": "pkg:t2i.shapes/assets/clip",
            "pairs": {"type": "pairs", "path": str(found)},
            "objective": {"type": "bradley_terry", "held_out_share": 0.25},
            "trained": trained,
            "optimizer": {"learning_rate": 1e-3},
            "loop": {"steps": 2, "batch_size": 4},
        }
        facts = tiny.run_stage(Train, folder / "train", fields)
        files = sorted((folder / "train" / facts["model"]).glob("*.safetensors"))
        return {f"{path.name}/{key}": value for path in files for key, value in load_file(path).items()}

    return weights


def image_models(folder: Path) -> dict[str, Tensor]:
    """A CLIP and a reader of images, each trained on pictures of the shapes world."""
    data = {"type": "shapes", "count": 12, "max_objects": 2}
    common: Fields = {"optimizer": {"learning_rate": 1e-3}, "loop": {"steps": 2, "batch_size": 4}}
    common["trained"] = {"type": "full", "components": ["model"]}
    clip: Fields = {"model": "pkg:t2i.shapes/assets/clip", "objective": {"type": "contrastive"}}
    clip |= {"captions": {"dense": 1.0}, "caption_dropout": 0, "data": data | {"captions": ["dense"]}}
    reader = {"init": "random", "data": data}
    reader["objective"] = {"type": "classification", "reader": "t2i.shapes.reader:SceneReader"}
    found: dict[str, Tensor] = {}
    for name, fields in {"clip": clip, "reader": reader}.items():
        facts = tiny.run_stage(Train, folder / name, common | fields)
        for path in (folder / name / facts["model"]).glob("*.safetensors"):
            found |= {f"{name}/{key}": value for key, value in load_file(path).items()}
    return found


def pictures() -> list[Image.Image]:
    """Three pictures that differ."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (40, 36, 3), dtype=np.uint8)) for _ in range(3)]


def scored(folder: Path) -> dict[str, Tensor]:
    """What every scorer says of three pictures, and the gradient of those that have one."""
    folder.mkdir(parents=True)
    options = tiny_scorers.options(folder, tiny_scorers.write_clip(folder / "clip"))
    device, found = str(devices.compute_device()), {}
    for name in rewards.available():
        scorer = rewards.load({"name": name} | options.get(name, {}), device)
        found[name] = torch.from_numpy(scorer.score(pictures(), ["a cat", "a dog", "red"]))
        found[name] = torch.nan_to_num(found[name] / found[name].abs().max())
        if isinstance(scorer, DifferentiableReward):
            pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
            scorer.score_tensor(pixels, ["a cat", "a dog"]).sum().backward()
            gradient = simulated_device.on_host(pixels.grad)
            found[f"{name} gradient"] = gradient / gradient.abs().max()
    return found


def asked(folder: Path) -> dict[str, Tensor]:
    """What tiny vision-language models answer, letter by letter, as captioners do and as judges of faithfulness do."""
    from rewards.faithfulness.image_text import ImageTextVqa
    from t2i.captioners.chat import LocalModel, Request

    folder.mkdir(parents=True)
    device, found = str(devices.compute_device()), {}
    pictures()[0].save(folder / "picture.png")
    for name, write in {"qwen": vqa_tiny.qwen, "idefics": vqa_tiny.idefics}.items():
        model = str(write(folder / name))
        settings = tiny.from_recipe(LocalModel, {"model": model, "dtype": "float32", "max_tokens": 6})
        replies = dict(settings.open().reply([Request("what is there?", folder / "picture.png")]))
        vqa = ImageTextVqa(model, device=device)
        shares = [answer.yes for answer in vqa.yes_no(pictures(), ["a cat?", "red?", "two?"])]
        found[name] = torch.tensor([float(ord(letter)) for letter in f"{replies[0].text:20}"]) / 256
        found[f"{name} yes"] = torch.tensor(shares)
    return found


def strict(folder: Path) -> dict[str, Tensor]:
    """What a GPU refuses: to add what is in the host's memory."""
    return {"sum": torch.ones(2, device=devices.compute_device()) + torch.ones(2)}


def waiting(folder: Path) -> dict[str, Tensor]:
    """A loop that reads a value in every step."""

    def reading(own: stepper.Stepper, last: bool) -> AbstractContextManager[None]:
        int(own.bad_step)
        return nullcontext()

    with mock.patch.object(stepper.Stepper, "_synchronise_on", reading):
        return train(folder, training_cases()["diffusion_kto"])


def all_cases() -> dict[str, Callable[[Path], dict[str, Tensor]]]:
    """Name -> what gives tensors to compare."""
    cases: dict[str, Callable[[Path], dict[str, Tensor]]] = {
        name: lambda folder, fields=fields: train(folder, fields) for name, fields in training_cases().items()
    }
    cases |= {f"{name} sampling": sampled(name) for name in MODELS}
    cases |= {"resume": resumed, "doctor": examined, "image models": image_models, "scorers": scored, "answers": asked}
    cases |= {"strictness": strict, "waiting": waiting}
    cases["reward head"] = rewarded({"type": "full", "components": ["head"]})
    cases["reward encoder"] = rewarded(LORA)
    return cases


@contextmanager
def computing_on(device: torch.device) -> Iterator[list[simulated_device.Wait]]:
    """Let the toolkit compute there; gives what the host waits for in steps after the first."""
    from accelerate.state import AcceleratorState, PartialState

    build, step = loop.build_accelerator, stepper.Stepper.step
    write, unshared = loop.write_checkpoint, checkpoint._unshared
    waits: list[simulated_device.Wait] = []

    def accelerator(*arguments: Any, **options: Any) -> Any:
        AcceleratorState._reset_state(reset_partial_state=True)
        built = build(*arguments, **options)
        for state in (AcceleratorState, PartialState):
            state._shared_state["device"] = device
        return built

    def watched_step(own: stepper.Stepper, number: int, batches: Any) -> None:
        simulated_device.waits.clear()
        step(own, number, batches)
        if number:
            waits.extend(simulated_device.waits)

    on_host, state_of = simulated_device.on_host, torch.nn.Module.state_dict
    with (
        mock.patch.object(devices, "compute_device", return_value=device),
        mock.patch.object(loop, "build_accelerator", accelerator),
        mock.patch.object(stepper.Stepper, "step", watched_step),
        # Files are written from memory, of which these tensors say they have none.
        mock.patch.object(loop, "write_checkpoint", lambda a, b, tensors, **o: write(a, b, on_host(tensors), **o)),
        mock.patch.object(torch.nn.Module, "state_dict", lambda *a, **o: on_host(state_of(*a, **o))),
        mock.patch.object(checkpoint, "_unshared", lambda tensors: unshared(on_host(tensors))),
        # On the meta device and in files, which have tests of their own and take longer than two steps.
        mock.patch.object(train_run, "_estimate", return_value=None),
        mock.patch.object(tasks, "check_contract"),
        mock.patch.object(tasks, "check_trained"),
        # The device has no kernel of its own for attention: both compute it by the same formula.
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield waits


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Of all values, relative to the largest."""
    assert one
    assert one.keys() == two.keys()
    largest = max(float(value.abs().max()) for value in one.values())
    return max(float((value - two[key]).abs().max()) for key, value in one.items()) / largest


def main(names: list[str]) -> None:
    """Run the cases and print a line for each."""
    simulated = simulated_device.register()
    cases = all_cases()
    with tempfile.TemporaryDirectory() as root:
        for name in names or cases:
            line: dict[str, Any] = {"case": name}
            try:
                with computing_on(torch.device("cpu")):
                    expected = cases[name](Path(root, name, "cpu"))
                with computing_on(simulated) as waits:
                    found = cases[name](Path(root, name, "simulated"))
                line["difference"] = largest_difference(expected, found)
                line["waits"] = [[wait.operation, *wait.lines] for wait in waits]
            except Exception as error:
                line["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
