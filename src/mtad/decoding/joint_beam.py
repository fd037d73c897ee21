"""Multi-token joint decoding by beam sampling with the target itself."""

from time import perf_counter

import torch

from mtad.decoding.decoder import Decoder
from mtad.decoding.outcome import RowOutcome, undrafted
from mtad.drafting import BeamDrafter, BeamSampler, assemble_tree
from mtad.models.runner import ModelRunner
from mtad.structures import path_to


class JointBeamDecoder(Decoder):
    """Emits blocks of gamma tokens: the best beam of beam sampling with the target (MTJD, Qin et al. 2025).

    Args:
        target: The model.
        gamma: Tokens per block; each costs one target call.
        sampler: Width and draw of the beams; must keep unwarped log-probabilities.
    """

    def __init__(self, target: ModelRunner, gamma: int, sampler: BeamSampler) -> None:
        self._beams = BeamDrafter(target, gamma, sampler)
        super().__init__(target, extra_slots=self._beams.num_slots + gamma, one_hot_at_zero=False)
        self._block_length = gamma

    @torch.inference_mode()
    def step(self, active: list[bool]) -> list[RowOutcome | None]:
        """See `Decoder.step`."""
        started = perf_counter()
        is_active = torch.tensor(active, device=self.target.device)
        rows = self.rows.at(self.target.lengths.clone())
        levels = self._beams.draw_levels(self.previous, self.pending, rows)
        tree = assemble_tree(levels, rows)
        path, _ = path_to(tree, tree.winner)
        tokens = tree.tokens.gather(1, path)
        log_probs = torch.cat([beams.unwarped for beams in levels if beams.unwarped is not None], 1).gather(1, path)
        lengths = (~tree.carried.gather(1, path)).sum(1)
        self.target.keep_path(path[:, :-1], torch.full_like(lengths, self._block_length - 1), is_active)
        if self._block_length > 1:
            self.previous = torch.where(is_active, tokens[:, -2], self.previous)
        else:
            self.previous = torch.where(is_active, self.pending, self.previous)
        self.pending = torch.where(is_active, tokens[:, -1], self.pending)
        self.target.note_longest(int(self.target.lengths.max()))
        self.times.verify_s += perf_counter() - started
        blocks = zip(tokens.tolist(), log_probs.tolist(), lengths.tolist(), active, strict=True)
        return [
            undrafted(row[:count], row_log_probs[:count], self._block_length) if on else None
            for row, row_log_probs, count, on in blocks
        ]
