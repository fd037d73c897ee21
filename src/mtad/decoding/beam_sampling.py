"""Beam sampling of whole answers with the target alone."""

from time import perf_counter

import torch
from torch import Tensor

from mtad.decoding.decoder import Decoder
from mtad.decoding.outcome import RowOutcome, undrafted
from mtad.drafting import Beams, BeamSampler, NoDrafter
from mtad.models.runner import ModelRunner
from mtad.structures.rows import RowSettings


class BeamSamplingDecoder(Decoder):
    """Keeps `sampler.width` beams per row for the whole answer and returns the best at the end.

    At temperature 0 this is beam search. A row ends when its best beam has drawn EOS, or at its limit; no length
    penalty is applied. Until then its outcomes hold no tokens.

    Args:
        target: The model.
        sampler: Width and draw of the beams; must keep unwarped log-probabilities.
    """

    def __init__(self, target: ModelRunner, sampler: BeamSampler) -> None:
        super().__init__(target, extra_slots=0, one_hot_at_zero=False)
        self._sampler = sampler
        self._no_draft = NoDrafter()

    def prefill(self, prompts: list[list[int]], settings: list[RowSettings], max_new_tokens: list[int]) -> None:
        """See `Decoder.prefill`; every row takes `width` rows of the cache."""
        super().prefill(prompts, settings, max_new_tokens)
        self._limits = list(max_new_tokens)
        self._num_rows = len(prompts)
        self._beams: Beams | None = None
        self._tokens = torch.zeros(len(prompts), self._sampler.width, 0, dtype=torch.int64, device=self.target.device)
        self._log_probs = self._tokens.double()

    @torch.inference_mode()
    def step(self, active: list[bool]) -> list[RowOutcome | None]:
        """See `Decoder.step`."""
        started = perf_counter()
        beams = self._draw_beams(active)
        origins = beams.origins.unsqueeze(-1)
        length = self._tokens.shape[-1]
        assert beams.unwarped is not None
        kept = self._tokens.gather(1, origins.expand(-1, -1, length)) if length else self._tokens
        kept_log_probs = self._log_probs.gather(1, origins.expand(-1, -1, length)) if length else self._log_probs
        self._tokens = torch.cat([kept, beams.tokens.unsqueeze(-1)], -1)
        self._log_probs = torch.cat([kept_log_probs, beams.unwarped.double().unsqueeze(-1)], -1)
        self._beams = beams
        outcomes = self._read(beams, active)
        self.times.verify_s += perf_counter() - started
        return outcomes

    @torch.inference_mode()
    def select_rows(self, rows: list[int]) -> None:
        """See `Decoder.select_rows`."""
        width = self._sampler.width
        index = torch.tensor(rows, device=self.target.device)
        if self._beams is not None:
            flat = (index.unsqueeze(1) * width + torch.arange(width, device=index.device)).flatten()
            self.target.select_rows(flat)
            self.pending = self.pending[flat]
            self._beams = self._beams.select(index)
        self._tokens, self._log_probs = self._tokens[index], self._log_probs[index]
        self.rows, self.row_ids = self.rows.select(index), self.row_ids[index]
        self._limits = [self._limits[row] for row in rows]
        self._num_rows = len(rows)

    def _draw_beams(self, active: list[bool]) -> Beams:
        """One target call and one draw; reorders the cache so that row r, beam w is cache row r * width + w."""
        width = self._sampler.width
        depth = self._tokens.shape[-1] + 1
        positions = self.target.lengths.view(self._num_rows, -1)[:, 0].clone()
        logits = self._score_pending(active).view(self._num_rows, -1, self.target.vocab_size)
        before = Beams.root(logits) if self._beams is None else self._beams
        beams = self._sampler.expand(before, logits, self.rows.at(positions), depth)
        first = torch.arange(self._num_rows, device=logits.device).unsqueeze(1) * logits.shape[1]
        self.target.select_rows((first + beams.origins).flatten())
        self.pending = beams.tokens.reshape(self._num_rows * width)
        return beams

    def _score_pending(self, active: list[bool]) -> Tensor:
        """Logits after the newest token of every beam; ended rows stay where they are, so that they cannot overflow."""
        tree = self._no_draft.draft(self.pending, self.pending, self.rows)
        logits = self.target.score_tree(self.pending, tree)[:, 0]
        is_active = torch.tensor(active, device=logits.device).repeat_interleave(len(logits) // len(active))
        self.target.keep_path(tree.tokens, torch.zeros_like(self.pending), is_active)
        return logits

    def _read(self, beams: Beams, active: list[bool]) -> list[RowOutcome | None]:
        best = beams.joint.argmax(1)
        rows = torch.arange(self._num_rows, device=best.device)
        ends = beams.finished[rows, best].tolist()
        tokens = self._tokens[rows, best].tolist()
        log_probs = self._log_probs[rows, best].tolist()
        outcomes: list[RowOutcome | None] = []
        for row, is_active in enumerate(active):
            is_done = ends[row] or len(tokens[row]) >= self._limits[row]
            answer = undrafted(tokens[row], log_probs[row], 1) if is_done else undrafted([], [], 1)
            outcomes.append(answer if is_active else None)
        return outcomes
