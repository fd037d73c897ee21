"""lm-evaluation-harness: mtad as one of its models.

Its own command line with the model `mtad` added is
`python -m mtad.evaluation.harness_cli run --model mtad --model_args target=...,draft=...,threshold=0.5 --tasks ...`.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mtad.api import Engine
from mtad.config import GenerationOptions, ModelOptions, replace_settings, setting_fields
from mtad.errors import ConfigError

_DEFAULT_LENGTH = 256
_HARNESS_DEVICE = "cuda:0"
_DEFAULT_POSITIONS = 2048


@register_model("mtad")
class MtadLM(TemplateLM):  # type: ignore[misc]
    """The harness's view of an engine: log-likelihoods are the target's, generation is that of any method.

    Tasks ask for greedy decoding or a temperature; a `temperature` given here goes over theirs.

    Args:
        engine: Loaded models; None loads those that the other arguments name.
        options: How to decode; None takes it from the other arguments.
        batch_size: Texts at once; "auto" means 8.
        **settings: Fields of `ModelOptions` and `GenerationOptions`; what else the harness gives is passed over.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        options: GenerationOptions | None = None,
        batch_size: int | str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if settings.get("device") == _HARNESS_DEVICE:
            # The harness names it on every machine; "auto" takes it where it is there.
            del settings["device"]
        self.options = (options or _pick(GenerationOptions(), settings)).for_measurement()
        if engine is None:
            models = _pick(ModelOptions(), settings)
            names = {item.name: getattr(models, item.name) for item in setting_fields(ModelOptions)}
            engine = Engine.from_pretrained(names.pop("target"), **names)
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self.batch_size = int(str(batch_size)) if str(batch_size).isdecimal() else 8

    @property
    def eot_token_id(self) -> int:
        """What stands in front of a text that has no context."""
        tokenizer = self.tokenizer
        found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if found is None:
            raise ConfigError("log-likelihoods need a first token, but the tokenizer names none; set its bos_token")
        return int(found)

    @property
    def max_length(self) -> int:
        """Tokens that the target reads."""
        return self.engine.models.target.max_positions or _DEFAULT_POSITIONS

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in the harness's caches."""
        return str(self.engine.models.options.target).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the harness's records."""
        return str(self.tokenizer.chat_template) if chat_template else None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a bare text."""
        return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False)["input_ids"])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's length."""
        totals = []
        for request in requests:
            token_ids = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(
                token_list=token_ids, prefix_token=self.eot_token_id, max_seq_len=self.max_length - 1, context_len=1
            )
            pairs = [make_disjoint_window(window) for window in windows]
            scored = self._loglikelihood_tokens([(("", ""), context, rest) for context, rest in pairs])
            totals.append(sum(value for value, _ in scored))
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        texts = [(context + continuation)[-self.max_length :] for _, context, continuation in requests]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        scores = self.engine.score([texts[place] for place in order], batch_size=self.batch_size)
        found: dict[int, tuple[float, bool]] = {}
        for place, score in zip(order, scores, strict=True):
            length = len(requests[place][2])
            found[place] = sum(score.log_probs[-length:]), all(score.is_best[-length:])
        return [found[place] for place in range(len(texts))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue texts as the tasks ask."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(place)
        texts = [""] * len(requests)
        for places in groups.values():
            options = self._options(requests[places[0]].args[1])
            room = self.max_length - options.max_new_tokens - 1
            prompts = [self.tok_encode(requests[place].args[0])[-room:] or [self.eot_token_id] for place in places]
            results = self.engine.generate(prompts, options, batch_size=self.batch_size)
            for place, result in zip(places, results, strict=True):
                texts[place] = result.text
        return texts

    def _options(self, asked: dict[str, Any]) -> GenerationOptions:
        until = asked.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        length = asked.get("max_gen_toks") or asked.get("max_new_tokens") or asked.get("max_tokens") or _DEFAULT_LENGTH
        temperature = float(asked.get("temperature") or 0.0) if asked.get("do_sample") else 0.0
        changes: dict[str, Any] = {"stop": tuple(filter(None, stop)), "max_new_tokens": int(length)}
        if self.options.temperature is None:
            changes["temperature"] = temperature
        return replace_settings(self.options, changes, "the task")


def run_harness(
    engine: Engine,
    options: GenerationOptions,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Run tasks of the harness; returns its results by task and metric.

    Args:
        engine: The models.
        options: How to decode.
        tasks: Names that the harness knows.
        include_path: Folder of further task files.
        limit: Items of each task; None means all.
        batch_size: Texts at once.

    Raises:
        ConfigError: A task that the harness does not know.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"lm-evaluation-harness knows no task {unknown[0]!r}; name the folder of its file with --lm-eval-path"
        )
    model = MtadLM(engine, options, batch_size=batch_size)
    found = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=1000, log_samples=False
    )
    results: dict[str, Any] = found["results"]
    return results


def _pick(base: Any, settings: dict[str, Any]) -> Any:
    known = {item.name: item for item in setting_fields(base)}
    given = {name: value for name, value in settings.items() if name in known and value is not None}
    return replace_settings(base, given, "model_args")
