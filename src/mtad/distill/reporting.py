"""What a finished run says about itself: the fields of the model card."""

from typing import Any

from mtad.distill.sampling import TEMPERATURES
from mtad.distill.shapes import DraftShape
from mtad.models.intersection import VocabularyMap
from mtad.models.loading import LoadedModels

_ASSISTED = 'target.generate(**inputs, assistant_model=AutoModelForCausalLM.from_pretrained("THIS_FOLDER"))'
_TRIMMED = (
    "# its token ids are its own: target_vocabulary.safetensors pairs them with the target's, which mtad alone reads"
)


def find_rates(sample: dict[str, Any], train: dict[str, Any]) -> dict[str, float]:
    """Tokens a second of both stages, prompts included; all drafts together.

    Args:
        sample: What the sampling left, with `tokens` and `seconds`.
        train: The same of the training.
    """
    return {
        "sampling_tokens_per_s": sample["tokens"] / max(sample["seconds"], 1e-9),
        "training_tokens_per_s": train["tokens"] / max(train["seconds"], 1e-9),
    }


def card_fields(
    report: dict[str, Any],
    shape: DraftShape,
    draft: Any,
    models: LoadedModels,
    vocabulary: VocabularyMap | None,
    num_prompts: int,
) -> dict[str, Any]:
    """The fields of the card of one draft.

    Args:
        report: Of the run.
        shape: Which draft.
        draft: The model.
        models: The target.
        vocabulary: Where the draft has some of the target's tokens only.
        num_prompts: Prompts that the user gave.
    """
    found, options = report["drafts"][shape.name], report["options"]
    labels = {"overlap": "overlap"} | {name: f"tokens per call, {name}" for name in found["after"] if name != "overlap"}
    rows = [f"| {label} | {found['before'][key]:.3f} | {found['after'][key]:.3f} |" for key, label in labels.items()]
    target = models.options.target
    if models.options.adapter is not None:
        target += f" with the adapter {models.options.adapter}"
    is_cpu = models.target.device.type == "cpu"
    return {
        "target": target,
        "elsewhere": _ASSISTED if vocabulary is None else _TRIMMED,
        "model_type": type(draft).__name__,
        "parameters": found["parameters"] / 1e6,
        "shape": _shape(draft, vocabulary, options["head_rank"]),
        "figures": "\n".join(rows),
        "texts": report["sample"]["texts"],
        "tokens": report["sample"]["tokens"],
        "temperatures": ", ".join(f"{value:g}" for value in TEMPERATURES),
        "prompts": f"{num_prompts:,} given, the others written by the target",
        "init": options["init"],
        "loss": options["loss"],
        "on_policy": f"the last {options['on_policy']:.0%} of the training" if options["on_policy"] else "none",
        "seen": report["train"]["tokens"],
        "sampling_s": report["sample"]["seconds"],
        "sampling_rate": report["rates"]["sampling_tokens_per_s"],
        "training_rate": report["rates"]["training_tokens_per_s"],
        "training_s": report["train"]["seconds"],
        "device": report["run"]["machine"]["processor"] if is_cpu else "CUDA",
        "command": report["run"]["command"],
    }


def _shape(draft: Any, vocabulary: VocabularyMap | None, head_rank: int | None) -> str:
    parts = [f"hidden {draft.config.hidden_size}", f"{draft.config.num_hidden_layers} layers"]
    parts += [] if vocabulary is None else [str(vocabulary)]
    return ", ".join(parts + ([] if head_rank is None else [f"a head of rank {head_rank}"]))
