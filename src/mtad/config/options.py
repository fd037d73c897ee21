"""The settings of models and of decoding."""

from dataclasses import dataclass, replace
from typing import Literal

from mtad.config.fields import check_settings, setting
from mtad.config.spelling import MAX_TREE_NODES, check_strict, parse_branching, parse_logit_bias
from mtad.errors import ConfigError

METHOD_NAMES = ("mmtad", "mtad", "speculative", "autoregressive", "beam_sampling", "dynamic_beam", "mtjd")
DRAFTER_NAMES = ("none", "chain", "beam", "beam_tree", "branching_tree", "dynamic_tree", "prompt_lookup", "early_exit")
VERIFIER_NAMES = (
    "target_only",
    "exact_match",
    "token_rejection",
    "block",
    "tree_rejection",
    "traversal",
    "joint",
    "joint_own_path",
    "joint_expected",
    "typical",
    "threshold",
    "big_little",
)
RULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "joint": ("threshold",),
    "joint_own_path": ("threshold",),
    "joint_expected": ("threshold",),
    "typical": ("typical_epsilon", "typical_delta"),
    "threshold": ("accept_single", "accept_accumulated"),
    "big_little": ("fallback_threshold", "rollback_threshold"),
}
"""The settings that a rule reads; rules that are not listed have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which models to load and where they run."""

    target: str = setting(str, "smollm2", "target: default pair 'smollm2', a local folder or a hub id")
    draft: str | None = setting(str, None, "draft: a local folder or a hub id (default: the pair's own)")
    adapter: str | None = setting(str, None, "PEFT adapter to merge into the target: a folder or a hub id")
    device: str = setting(str, "auto", "auto, cpu, cuda or cuda:N")
    dtype: str = setting(
        str, "auto", "weights and cache", choices=("auto", "bfloat16", "float16", "float32", "float64")
    )
    quantization: Literal["none", "int8"] = setting(
        str,
        "none",
        "weights of the linear layers: as dtype says, or 8-bit on the CPU, a little less exact",
        choices=("none", "int8"),
    )
    fused: Literal["auto", "off"] = setting(
        str, "auto", "whole layers in few kernels where these do what the modules do, or never", choices=("auto", "off")
    )
    threads: int | None = setting(
        int,
        None,
        "threads of the CPU (else OMP_NUM_THREADS, else the cores that this process may use)",
        minimum=1,
        maximum=1024,
    )
    device_map: str | None = setting(str, None, "spread the target over devices as accelerate does, e.g. auto")
    revision: str | None = setting(str, None, "hub revision of the target")
    match_vocabularies: Literal["exact", "intersection"] = setting(
        str,
        "exact",
        "draft with a vocabulary of its own: refuse it, or draft only tokens that both have",
        choices=("exact", "intersection"),
    )
    target_shape: str | None = setting(
        str, None, "cost twin: enlarge the target to a known size, e.g. llama-3.1-8b, its function unchanged"
    )
    draft_shape: str | None = setting(str, None, "cost twin: enlarge the draft to a known size, e.g. llama-3.2-1b")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How to decode. None means: from the model's generation config, or the default the help text names."""

    method: str = setting(str, "mmtad", "decoding method", choices=METHOD_NAMES)
    drafter: str | None = setting(str, None, "drafter instead of the method's own", choices=DRAFTER_NAMES)
    verifier: str | None = setting(str, None, "acceptance rule instead of the method's own", choices=VERIFIER_NAMES)
    gamma: int = setting(int, 3, "tokens drafted per iteration", minimum=1, maximum=MAX_TREE_NODES)
    beam_width: int = setting(int, 3, "beams of the draft", minimum=1, maximum=MAX_TREE_NODES)
    threshold: float = setting(
        float, 0.5, "tau: a draft is kept while P(draft) > tau * Q(draft); lower keeps more", above=0, maximum=1
    )
    typical_epsilon: float = setting(
        float, 0.09, "typical: a token is kept while p > min(epsilon, delta * exp(-entropy))", above=0, maximum=1
    )
    typical_delta: float = setting(float, 0.3, "typical: the delta of that bound; lower keeps more", above=0, maximum=1)
    accept_single: float = setting(
        float, 1.0, "threshold: a token with p at or above this is kept; lower keeps more", above=0, maximum=1
    )
    accept_accumulated: float = setting(
        float, 1.0, "threshold: other tokens are kept with probability p / this; lower keeps more", above=0, maximum=1
    )
    fallback_threshold: float = setting(
        float, 0.6, "big_little: the draft ends where its largest probability is below this", minimum=0, maximum=1
    )
    rollback_threshold: float = setting(
        float, 5.0, "big_little: a token is kept while -log p is at most this; higher keeps more", minimum=0
    )
    beam_acceptance: float = setting(
        float,
        0.9,
        "dynamic_beam: a layer keeps the most beams that drafts fill with this probability; 0 keeps the whole width",
        minimum=0,
        maximum=1,
    )
    branching: str = setting(str, "4,2,2", "branching_tree: children of every node by depth, at most 64 nodes in all")
    siblings: Literal["with_replacement", "without_replacement"] = setting(
        str,
        "without_replacement",
        "branching_tree: how the children of a node are drawn",
        choices=("with_replacement", "without_replacement"),
    )
    node_budget: int = setting(int, 16, "dynamic_tree: most probable nodes kept", minimum=1, maximum=MAX_TREE_NODES)
    lookup_ngram: int = setting(
        int, 3, "prompt_lookup: longest run of last tokens looked for in the text", minimum=1, maximum=64
    )
    exit_layers: int | None = setting(
        int,
        None,
        "draft with this many of the target's own first layers instead of a draft model (early_exit: else a third)",
        minimum=1,
    )
    draw: Literal["top", "gumbel", "sample"] = setting(
        str, "top", "how beams are drawn", choices=("top", "gumbel", "sample")
    )
    draft_length: Literal["fixed", "adaptive"] = setting(
        str,
        "fixed",
        "drafted depth of each row: always gamma, or up to gamma as its acceptance pays for",
        choices=("fixed", "adaptive"),
    )
    draft_level_cost: float = setting(
        float, 0.1, "adaptive: what one drafted level costs, in calls of the target", above=0, maximum=10
    )
    guard: Literal["auto", "on", "off"] = setting(
        str,
        "auto",
        "shorten the draft, or leave it out, where it makes decoding slower; what it does depends on the clock, so "
        "auto guards only where no seed is given",
        choices=("auto", "on", "off"),
    )
    draft_confidence: float = setting(
        float, 0.0, "stop drafting below a node of lower joint draft probability; 0 never stops", minimum=0, maximum=1
    )
    strict: tuple[str, ...] = setting(
        tuple,
        (),
        "keep only the target's own tokens inside these spans of the answer: code (fences), json, or OPENER,CLOSER; "
        "may be given several times",
    )
    temperature: float | None = setting(float, None, "0 is greedy (model's own, else 1.0)", minimum=0)
    top_k: int | None = setting(int, None, "most likely tokens kept, 0 keeps all (model's own, else 10)", minimum=0)
    top_p: float | None = setting(float, None, "nucleus mass kept (model's own, else 0.9)", above=0, maximum=1)
    min_p: float | None = setting(
        float,
        None,
        "share of the best token's probability that a token needs (model's own, else 0)",
        minimum=0,
        maximum=1,
    )
    repetition_penalty: float | None = setting(
        float,
        None,
        "divides positive logits of tokens already in the text, above 1 against repeats (model's own, else 1)",
        above=0,
    )
    presence_penalty: float = setting(
        float, 0.0, "taken from the logits of tokens in the answer", minimum=-2, maximum=2
    )
    frequency_penalty: float = setting(
        float, 0.0, "taken from the logits of tokens in the answer, each time they occur", minimum=-2, maximum=2
    )
    logit_bias: tuple[str, ...] = setting(
        tuple, (), "add to logits, as ID:VALUE,...; -inf forbids the token; may be given several times"
    )
    json_schema: str | None = setting(str, None, "confine answers to JSON of this schema: a file, or the schema itself")
    regex: str | None = setting(str, None, "confine answers to this regular expression")
    grammar: str | None = setting(str, None, "confine answers to this Lark grammar: a file, or the grammar itself")
    max_new_tokens: int = setting(int, 256, "longest answer in tokens", minimum=1)
    stop: tuple[str, ...] = setting(tuple, (), "end the answer at this text; may be given several times")
    top_logprobs: int = setting(
        int, 0, "report so many of the target's best tokens beside every token of the answer", minimum=0, maximum=20
    )
    ignore_eos: bool = setting(bool, False, "go on after the end-of-text token")
    seed: int | None = setting(
        int, None, "seed of all random draws, with which text can be repeated (else 0)", minimum=0, maximum=2**62
    )
    cuda_graphs: Literal["auto", "off"] = setting(
        str,
        "auto",
        "CUDA: replay whole iterations as captured graphs where nothing on the host takes part, or never",
        choices=("auto", "off"),
    )
    compile: Literal["auto", "on", "background", "off"] = setting(
        str,
        "off",
        "compile what lies between the models' calls: before the first iteration (on), while answers are given "
        "(background), or the latter on CUDA where no seed is given (auto); compiled sums round differently",
        choices=("auto", "on", "background", "off"),
    )
    search_budget: int = setting(int, 4096, "mtjd at temperature 0: prefixes expanded per block", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if any(not text for text in self.stop):
            raise ConfigError("stop must not hold empty text; leave the setting out instead")
        for kind in self.strict:
            check_strict(kind)
        parse_branching(self.branching)
        parse_logit_bias(self.logit_bias)
        self._check_grammars()
        if self.uses_beams and self.gamma * self.beam_width > MAX_TREE_NODES:
            raise ConfigError(
                f"gamma * beam_width must be <= {MAX_TREE_NODES} tree nodes, "
                f"got {self.gamma} * {self.beam_width} = {self.gamma * self.beam_width}; lower one of them"
            )

    def for_measurement(self) -> "GenerationOptions":
        """The same for what is to be repeated and compared: with a seed, guarded or compiled only where asked for."""
        return replace(
            self,
            seed=self.seed or 0,
            guard="off" if self.guard == "auto" else self.guard,
            compile="off" if self.compile == "auto" else self.compile,
        )

    @property
    def uses_beams(self) -> bool:
        """Whether the method drafts with beams, which fill gamma * beam_width tree nodes."""
        if self.drafter is not None:
            return self.drafter in ("beam", "beam_tree", "dynamic_tree")
        return self.method in ("mmtad", "mtad", "dynamic_beam", "mtjd")

    @property
    def branching_counts(self) -> tuple[int, ...]:
        """`branching` as numbers, root first."""
        return parse_branching(self.branching)

    def _check_grammars(self) -> None:
        given = [name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"got {' and '.join(given)}, expected one grammar at most; leave the others out")
        if given and self.ignore_eos:
            raise ConfigError(
                f"{given[0]} ends answers with the end-of-text token, got ignore_eos; leave one of them out"
            )

    @property
    def logit_biases(self) -> dict[int, float]:
        """`logit_bias` as numbers by token id; the last of several for one token."""
        return parse_logit_bias(self.logit_bias)
