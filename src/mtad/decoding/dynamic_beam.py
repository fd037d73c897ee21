"""Speculative beam sampling: drafted beams are verified layer by layer against the target's beam sampling."""

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from mtad.decoding.beam_walk import BeamWalk, Ending
from mtad.decoding.decoder import Decoder
from mtad.decoding.outcome import RowOutcome
from mtad.drafting import Beams, BeamSampler, ForestDrafter, repeat_tree
from mtad.models.runner import ModelRunner
from mtad.structures.rows import RowSettings
from mtad.verification import BeamLayerVerifier


@dataclass(slots=True)
class BeamTexts:
    """What every committed beam consists of; each `[batch, width, room]`, valid up to the row's length.

    Attributes:
        tokens: Token ids, int64.
        log_probs: Temperature-1 natural log-probability of each token, 0 where carried, float64.
        from_draft: Whether the draft proposed the token, bool.
    """

    tokens: Tensor
    log_probs: Tensor
    from_draft: Tensor

    def read(self, row: int, beam: int, count: int) -> tuple[list[int], list[float], list[bool]]:
        """Bring one beam to the host."""
        here = (row, beam, slice(count))
        return self.tokens[here].tolist(), self.log_probs[here].tolist(), self.from_draft[here].tolist()


class DynamicBeamDecoder(Decoder):
    """Beam sampling with the target, sped up by drafts: DSBD (Qin et al., AAAI 2025).

    An iteration drafts a forest from all committed beams, scores it in one call of the target and walks down its
    layers: one that drafts alone fill is passed, the first other one is filled up by the target and its beams are
    committed; behind a forest passed as a whole comes one more layer of the target's own. Answers end as those of
    `BeamSamplingDecoder` do, checked after every layer, and at `beam_acceptance` 0 they have exactly its law;
    `BeamLayerVerifier` says what holds above 0. Until an answer ends, its outcomes hold no tokens.

    Beam w of request b is row b * width + w of both caches.

    Args:
        target: The large model.
        draft: The auxiliary model.
        gamma: Layers drafted per iteration.
        sampler: Width and draw of the beams of both models.
        beam_acceptance: See `BeamLayerVerifier.acceptance`.
    """

    def __init__(
        self, target: ModelRunner, draft: ModelRunner, gamma: int, sampler: BeamSampler, beam_acceptance: float
    ) -> None:
        self._drafter = ForestDrafter(draft, gamma, sampler)
        super().__init__(target, extra_slots=self._drafter.num_slots, one_hot_at_zero=False)
        self._runners.append((draft, self._drafter.num_slots))
        rule = BeamLayerVerifier(width=sampler.width, draw=sampler.draw, acceptance=beam_acceptance)
        self._walk = BeamWalk(rule, sampler)
        self._width = sampler.width
        self.gamma = gamma

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]], settings: list[RowSettings], max_new_tokens: list[int]) -> None:
        """See `Decoder.prefill`; every row takes `width` rows of each cache."""
        super().prefill(prompts, settings, max_new_tokens)
        device, width = self.target.device, self._width
        self._fork(torch.arange(len(prompts), device=device).repeat_interleave(width))
        shape = (len(prompts), width, max(max_new_tokens) + self.gamma + 1)
        tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self._texts = BeamTexts(tokens, tokens.double(), tokens.bool())
        self._counts = tokens[:, 0, 0].clone()
        self._limits = torch.tensor(max_new_tokens, device=device)
        weights = torch.full(shape[:2], -torch.inf, device=device)
        weights[:, 0] = 0.0
        nothing = tokens[:, :, 0]
        self._beams = Beams(self.pending.view(shape[:2]), nothing, weights, weights, nothing.bool(), nothing.bool())

    @torch.inference_mode()
    def step(self, active: list[bool]) -> list[RowOutcome | None]:
        """See `Decoder.step`."""
        rows = self.rows.at(self.target.lengths.view(-1, self._width)[:, 0].clone())
        started = perf_counter()
        forest = self._drafter.draft(self._beams, self.previous, self.pending, rows)
        drafted = perf_counter()
        logits = self.target.score_tree(self.pending, repeat_tree(forest.tree, self._width))
        scored = perf_counter()
        is_active = torch.tensor(active, device=self.target.device)
        ending = self._walk.run(self._beams, forest, logits, rows, is_active, self._limits - self._counts)
        self._commit(ending)
        self.times.draft_s += drafted - started
        self.times.verify_s += scored - drafted
        return self._read(ending, active)

    @torch.inference_mode()
    def select_rows(self, rows: list[int]) -> None:
        """See `Decoder.select_rows`."""
        index = torch.tensor(rows, device=self.target.device)
        self._fork((index.unsqueeze(1) * self._width + torch.arange(self._width, device=index.device)).flatten())
        texts = self._texts
        self._texts = BeamTexts(texts.tokens[index], texts.log_probs[index], texts.from_draft[index])
        self._counts, self._limits = self._counts[index], self._limits[index]
        self.rows, self.row_ids = self.rows.select(index), self.row_ids[index]
        self._beams = self._beams.select(index)

    def _fork(self, cache_rows: Tensor) -> None:
        """Give every beam its own copy of the cache row it goes on from."""
        for runner, _ in self._runners:
            runner.select_rows(cache_rows)
        self.pending, self.previous = self.pending[cache_rows], self.previous[cache_rows]

    def _commit(self, ending: Ending) -> None:
        """Fork the rows, keep the paths' keys and append the new layers to the texts."""
        batch, width = ending.roots.shape
        first = torch.arange(batch, device=ending.roots.device).unsqueeze(1) * width
        self._fork((first + ending.roots).flatten())
        is_moving = (ending.num_layers > 0).repeat_interleave(width)
        num_kept = (ending.num_layers - 1).clamp(min=0).repeat_interleave(width)
        for runner in (self.target, self._drafter.runner):
            runner.keep_path(ending.paths.flatten(0, 1), num_kept, is_moving)
        new = ending.tokens.flatten(0, 1)
        last_kept = new.gather(1, (num_kept - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        previous = torch.where(num_kept > 0, last_kept, self.pending)
        self.previous = torch.where(is_moving, previous, self.previous)
        self.pending = torch.where(is_moving, ending.beams.tokens.flatten(), self.pending)
        self._beams = ending.beams
        self._append(ending)
        self._counts = self._counts + ending.num_layers

    def _append(self, ending: Ending) -> None:
        places = self._counts.view(-1, 1, 1) + torch.arange(self.gamma + 1, device=self._counts.device)
        places = places.expand_as(ending.tokens)
        roots = ending.roots.unsqueeze(-1).expand_as(self._texts.tokens)
        self._texts = BeamTexts(
            self._texts.tokens.gather(1, roots).scatter(2, places, ending.tokens),
            self._texts.log_probs.gather(1, roots).scatter(2, places, ending.log_probs.double()),
            self._texts.from_draft.gather(1, roots).scatter(2, places, ending.from_draft),
        )

    def _read(self, ending: Ending, active: list[bool]) -> list[RowOutcome | None]:
        best = ending.beams.joint.argmax(1)
        columns = [best, ending.is_last.long(), ending.num_passed, self._counts, self.target.lengths[:: self._width]]
        packed = torch.stack(columns, 1).tolist()
        for runner, _ in self._runners:
            runner.note_longest(max(row[-1] for row in packed))
        outcomes: list[RowOutcome | None] = []
        for row, (beam, is_last, num_passed, count, _) in enumerate(packed):
            tokens, log_probs, from_draft = self._texts.read(row, beam, count) if is_last else ([], [], [])
            outcome = RowOutcome(
                tokens=tokens,
                num_drafted=num_passed,
                log_probs=log_probs,
                joint_log_ratio=0.0,
                target_calls=1,
                from_draft=from_draft,
            )
            outcomes.append(outcome if active[row] else None)
        return outcomes
