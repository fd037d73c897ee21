"""What every rule owes, with every drafter that it fits."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from tests.table_models import Run, random_table

from mtad.config import DRAFTER_NAMES, VERIFIER_NAMES, GenerationOptions
from mtad.decoding import resolve_pair
from mtad.decoding.assisted import AssistedDecoder
from mtad.drafting import DRAFTERS
from mtad.errors import ConfigError
from mtad.structures import Acceptance, GenerationResult, RowControls, RowSettings, TokenTree
from mtad.verification import VERIFIERS, RuleSettings, Verifier

VOCAB, END = 6, 5
PROMPTS = [[1, 2], [3], [4, 0, 2, 1], [2, 2, 2], [0]]
LENGTHS = [9, 1, 14, 2, 7]
SETTINGS = [
    RowSettings(seed=1),
    RowSettings(seed=2, temperature=0, threshold=0.1),
    RowSettings(seed=3, temperature=0.6, top_k=3, threshold=0.3),
    RowSettings(seed=4, temperature=1.4, top_p=0.8, threshold=0.9),
    RowSettings(seed=5, temperature=0),
]


def fits(verifier: str, drafter: str) -> bool:
    entry, rule = DRAFTERS[drafter], VERIFIERS[verifier](RuleSettings())
    if drafter == "none":
        return verifier == "target_only"
    has_what_it_needs = entry.gives_distributions or not rule.needs_distributions
    return has_what_it_needs and (entry.gives_chain or not rule.needs_chain)


ALL_PAIRS = [(verifier, drafter) for verifier in VERIFIERS for drafter in DRAFTERS]
PAIRS = [pair for pair in ALL_PAIRS if fits(*pair)]
LOSSLESS_PAIRS = [pair for pair in PAIRS if VERIFIERS[pair[0]](RuleSettings()).is_lossless]


class Checked:
    """A rule whose every decision is checked."""

    def __init__(self, rule: Verifier) -> None:
        self.rule = rule
        self.is_lossless = rule.is_lossless
        self.needs_distributions = rule.needs_distributions
        self.needs_chain = rule.needs_chain
        self.num_kept = 0

    def accept(self, tree: TokenTree, target_log_probs: torch.Tensor, rows: RowControls) -> Acceptance:
        acceptance = self.rule.accept(tree, target_log_probs, rows)
        batch = tree.batch_size
        assert acceptance.path_nodes.shape == (batch, tree.depth)
        assert acceptance.joint_log_ratio.shape == (batch,)
        assert torch.isfinite(acceptance.joint_log_ratio).all()
        for row, kept in enumerate(acceptance.num_accepted.tolist()):
            path = acceptance.path_nodes[row].tolist()
            assert path[kept:] == [-1] * (tree.depth - kept)
            assert all(tree.valid[row, node] for node in path[:kept])
            assert [int(tree.parents[row, node]) for node in path[:kept]] == [-1, *path[:kept]][:kept]
            end = path[kept - 1] if kept else -1
            assert target_log_probs[row, end + 1, acceptance.next_tokens[row]] > -torch.inf
            assert kept > 0 or acceptance.joint_log_ratio[row] == 0
        self.num_kept += int(acceptance.num_accepted.sum())
        return acceptance


def run_of(verifier: str, drafter: str) -> Run:
    # A draft that resembles the target, so that every rule keeps something.
    target = random_table(31, VOCAB, order=2)
    draft = target + 0.5 * random_table(32, VOCAB, order=2)
    options = {"method": "mmtad", "verifier": verifier, "drafter": drafter, "gamma": 3, "beam_width": 2}
    options["fallback_threshold"] = 0.3
    return Run(target, draft, options, eos=frozenset({END}))


def emitted(result: GenerationResult) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    return result.token_ids, result.accepted_lengths, result.finish_reason


def test_every_rule_and_drafter_has_its_name_among_the_options() -> None:
    assert set(VERIFIER_NAMES) == set(VERIFIERS)
    assert set(DRAFTER_NAMES) == set(DRAFTERS)


def test_every_dial_is_a_decoding_option() -> None:
    options = GenerationOptions()
    assert RuleSettings() == RuleSettings.from_options(options)
    changed: dict[str, Any] = {
        item.name: 0.25 for item in fields(RuleSettings) if isinstance(getattr(options, item.name), float)
    }
    built = RuleSettings.from_options(GenerationOptions(**changed))
    assert {name: getattr(built, name) for name in changed} == changed


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_rule_says_what_it_is(verifier: str) -> None:
    rule = VERIFIERS[verifier](RuleSettings())
    for name in ("is_lossless", "needs_distributions", "needs_chain"):
        assert isinstance(getattr(rule, name), bool)
    words = (type(rule).__doc__ or "").lower()
    assert ("lossless" in words) if rule.is_lossless else ("lossy" in words and "guarantee" in words)


@pytest.mark.parametrize(("verifier", "drafter"), ALL_PAIRS)
def test_a_pair_is_taken_when_it_fits(verifier: str, drafter: str) -> None:
    options = GenerationOptions(verifier=verifier, drafter=drafter)
    if fits(verifier, drafter):
        pair = resolve_pair(options)
        assert pair is not None
        assert (pair.verifier, pair.drafter) == (verifier, drafter)
    else:
        with pytest.raises(ConfigError, match=f"verifier {verifier} .* drafter {drafter}"):
            resolve_pair(options)


@pytest.mark.parametrize(("verifier", "drafter"), PAIRS)
def test_every_decision_is_a_path_of_the_tree(verifier: str, drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(verifier, drafter)
    decoder = run.decoder()
    assert isinstance(decoder, AssistedDecoder)
    checked = decoder.verifier = Checked(decoder.verifier)
    monkeypatch.setattr(run, "decoder", lambda: decoder)
    settings = [RowSettings(seed=seed, temperature=1.0 if seed % 3 else 0.0) for seed in range(24)]
    run.generate([[1, 2]] * 24, settings, [12] * 24)
    assert checked.num_kept > 0 or verifier == "target_only"


@pytest.mark.parametrize(("verifier", "drafter"), PAIRS)
def test_a_row_of_a_ragged_batch_is_the_row_alone(verifier: str, drafter: str) -> None:
    together = run_of(verifier, drafter).generate(PROMPTS, SETTINGS, LENGTHS)
    for row, result in enumerate(together):
        alone = run_of(verifier, drafter).generate([PROMPTS[row]], [SETTINGS[row]], [LENGTHS[row]])
        assert emitted(alone[0]) == emitted(result)


@pytest.mark.parametrize(("verifier", "drafter"), PAIRS)
def test_answers_never_exceed_their_length(verifier: str, drafter: str) -> None:
    settings = [RowSettings(seed=seed) for seed in range(20)]
    lengths = [1 + seed % 7 for seed in range(20)]
    for result, length in zip(
        run_of(verifier, drafter).generate([[1, 2]] * 20, settings, lengths), lengths, strict=True
    ):
        assert 1 <= len(result.token_ids) <= length
        assert END not in result.token_ids[:-1]
        assert (result.finish_reason == "stop") == (result.token_ids[-1] == END)
        assert max(result.accepted_lengths) <= 3


@pytest.mark.parametrize(
    ("verifier", "drafter"), [pair for pair in PAIRS if VERIFIERS[pair[0]](RuleSettings()).is_lossless]
)
def test_lossless_rules_are_greedy_decoding_at_temperature_zero(verifier: str, drafter: str) -> None:
    run = run_of(verifier, drafter)
    greedy = Run(run.target, run.draft, {"method": "autoregressive"}, eos=run.eos)
    settings = [RowSettings(seed=seed, temperature=0) for seed in range(5)]
    lengths = [12] * 5
    expected = [result.token_ids for result in greedy.generate(PROMPTS, settings, lengths)]
    assert [result.token_ids for result in run.generate(PROMPTS, settings, lengths)] == expected
