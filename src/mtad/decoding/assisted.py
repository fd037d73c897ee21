"""The loop: draft, score the tree, judge it, keep the path."""

from collections.abc import Hashable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from mtad.constraints import Constraints, Places
from mtad.decoding.concluding import conclude, judge, read_outcome
from mtad.decoding.decoder import Decoder
from mtad.decoding.draft_guard import Clock, DraftGuard
from mtad.decoding.draft_lag import DraftLag
from mtad.decoding.outcome import RowOutcome
from mtad.decoding.row_policy import RowPolicy
from mtad.decoding.stages import stage
from mtad.drafting import Drafter, NoDrafter, limit_tree
from mtad.models.graphs import Capture, ReplayLoop, places_of, places_of_rows
from mtad.models.runner import ModelRunner
from mtad.models.step_compiler import StepCompiler
from mtad.sampling import draw_ahead
from mtad.structures.between_calls import taken_by
from mtad.structures.rows import RowSettings
from mtad.structures.steps import StepObserver, StepRecord
from mtad.verification import TargetOnly, Verifier


class AssistedDecoder(Decoder):
    """Decodes with any drafter and any rule; without a draft it is single-token decoding.

    Args:
        target: The large model.
        drafter: Proposes trees.
        verifier: Judges them.
        policies: What changes the rows' settings between iterations.
        constraints: Those of the rows, which the drafter's model follows too; None where no row has any.
        capture: Records an iteration so that it can be replayed; None runs every iteration as it is.
        guard: Shortens drafts that do not pay, or leaves them out; None always drafts.
        compiler: Computes what lies between the models' calls; None runs it as it is written.

    Attributes:
        observer: Is shown every iteration; None shows nothing and costs nothing.
        loop: Captures and replays iterations; None where there is no `capture`.
        num_top: Best tokens that are read beside every emitted one: the most that any row wants.
        longest: No row had more cached tokens when the host last heard of them.
    """

    observer: StepObserver | None = None
    num_top: int = 0
    longest: int = 0

    def __init__(
        self,
        target: ModelRunner,
        drafter: Drafter,
        verifier: Verifier,
        policies: Sequence[RowPolicy] = (),
        constraints: Constraints | None = None,
        capture: Capture | None = None,
        guard: DraftGuard | None = None,
        compiler: StepCompiler | None = None,
    ) -> None:
        # A row may end up to gamma tokens past its limit and is still fed until it leaves the batch; where the host is
        # an iteration behind, it has gone on for another one by then.
        overshoot = drafter.gamma if capture is None else 2 * drafter.gamma + 1
        super().__init__(target, extra_slots=drafter.num_nodes + overshoot, one_hot_at_zero=verifier.is_lossless)
        self.drafter = drafter
        self.verifier = verifier
        self.policies: tuple[RowPolicy, ...] = tuple(policies) if guard is None else (*policies, guard)
        self.guard = guard
        self._compiler = compiler
        self._lag = DraftLag()
        self.constraints = constraints or Constraints()
        self.gamma = drafter.gamma
        self.loop = None if capture is None else ReplayLoop(self._iterate, self._layout, capture, target.device)
        if drafter.runner is not None:
            self._runners.append((drafter.runner, drafter.num_slots + overshoot))

    def prefill(self, prompts: list[list[int]], settings: list[RowSettings], max_new_tokens: list[int]) -> None:
        """See `Decoder.prefill`."""
        super().prefill(prompts, settings, max_new_tokens)
        self._want_top(settings)
        for policy in self.policies:
            policy.start(len(prompts))
        self._lag.start(prompts)
        self.constraints.start(
            prompts, [setting.constraints for setting in settings], self.target.vocab_size, self.target.device
        )
        if self.loop is not None:
            self.loop.restart()

    def select_rows(self, rows: list[int]) -> None:
        """See `Decoder.select_rows`."""
        super().select_rows(rows)
        for policy in self.policies:
            policy.select_rows(rows)
        self._lag.select_rows(rows)
        self.constraints.select_rows(rows)
        if self.loop is not None:
            self.loop.select_rows(rows)

    @property
    def is_captured(self) -> bool:
        """See `Decoder.is_captured`."""
        return self.loop is not None

    @property
    def is_replayed(self) -> bool:
        """Whether the next iteration is replayed: nothing on the host takes part in it."""
        needs_host = self.observer is not None or any(policy.needs_host for policy in self.policies)
        return self.loop is not None and not needs_host and self.constraints.is_empty

    @property
    def _mode(self) -> tuple[int | None, int]:
        """What an iteration is captured for: the guard's depth, and which of its functions are compiled."""
        return self._depth, 0 if self._compiler is None else self._compiler.generation

    @torch.inference_mode()
    def step(self, active: list[bool]) -> list[RowOutcome | None]:
        """See `Decoder.step`."""
        self.constraints.begin_step(active)
        if self._compiler is not None:
            self._compiler.publish()
        if not self.is_replayed or self._is_behind:
            under_way = None if self.loop is None else self.loop.land()
            if under_way is not None:
                return self._read_landed(under_way, active)
            self._catch_up(active)
        started = self._clock()
        if self.loop is not None and self.is_replayed:
            for runner, _ in self._runners:
                runner.fix_shapes()
            landing = self.loop.run(active, self._mode)
            return self._read_landed(landing, active, self._clock() - started)
        packed = self._iterate(torch.tensor(active, device=self.target.device)).tolist()
        return self._read(packed, active, self._depth, self._clock() - started)

    @property
    def _clock(self) -> Clock:
        return perf_counter if self.guard is None else self.guard.clock

    @property
    def _depth(self) -> int | None:
        """Levels that the guard lets the next draft have; None where there is no guard."""
        return None if self.guard is None else self.guard.depth

    @property
    def _is_behind(self) -> bool:
        """Whether the next iteration drafts and the draft has not read all it needs for that."""
        under_way = None if self.loop is None else self.loop.mode_under_way
        is_passing_over = under_way is not None and under_way[0] == 0
        return bool(self._depth) and (is_passing_over or self._lag.is_behind)

    def _catch_up(self, active: list[bool]) -> None:
        """Let a draft that was left out read on."""
        if self._is_behind and self.guard is not None and self.drafter.runner is not None:
            started = self.guard.clock()
            self._lag.catch_up(self.drafter.runner, active, self.target.device, self.longest)
            self.guard.hear_catching_up(self.guard.clock() - started)

    def _iterate(self, active: Tensor) -> Tensor:
        """One iteration on the device; returns what `conclude` packs for the host."""
        with taken_by(self._compiler):
            return self._do_iterate(active)

    def _do_iterate(self, active: Tensor) -> Tensor:
        rows = self.rows.at(self.target.lengths.clone())
        for policy in self.policies:
            rows = policy.apply(rows)
        started = perf_counter()
        is_drafted = self._depth != 0
        drafter = self.drafter if is_drafted else NoDrafter()
        levels = min(drafter.gamma, rows.deepest)
        # As many numbers a level as beams, or as a rule draws for the nodes of a chain.
        rows = draw_ahead(rows, levels, max(levels, drafter.num_slots // max(drafter.gamma, 1), 1))
        verifier = self.verifier if is_drafted else TargetOnly()
        with stage("draft"):
            tree = limit_tree(drafter.draft(self.previous, self.pending, rows), rows)
        drafted = perf_counter()
        with stage("score"):
            logits = self.target.score_tree(self.pending, tree)
        scored = perf_counter()
        with stage("verify"):
            allowed, is_dead_end = self.constraints.apply(logits, Places.of_tree(tree))
            target_log_probs, acceptance, refusals = judge(verifier, tree, allowed, rows)
        if self.observer is not None:
            self.observer.observe(
                StepRecord(
                    row_ids=self.row_ids,
                    active=active,
                    rows=rows,
                    pending=self.pending.clone(),
                    tree=tree,
                    logits=logits,
                    target_log_probs=target_log_probs,
                    acceptance=acceptance,
                )
            )
        with stage("keep"):
            self.target.keep_path(acceptance.path_nodes, acceptance.num_accepted, active)
            if is_drafted:
                drafter.keep_path(acceptance, active)
            elif self.drafter.runner is not None:
                self.drafter.runner.pass_over(acceptance.next_tokens, active)
        self.times.draft_s += drafted - started
        self.times.verify_s += scored - drafted
        before = (self.pending, self.previous)
        tokens, pending, previous, packed = conclude(
            tree.tokens, acceptance, (logits, is_dead_end, refusals), before, self.target.lengths, active, self.num_top
        )
        if not self.constraints.is_empty:
            self.constraints.append(tokens, acceptance.num_accepted + 1, active)
        # In place, where the captured call finds them again.
        self.previous.copy_(previous)
        self.pending.copy_(pending)
        return packed

    def _layout(self) -> Hashable:
        runners = tuple(runner.layout() for runner, _ in self._runners)
        return (
            *runners,
            *places_of([self.pending, self.previous]),
            *places_of_rows(self.rows),
            self.num_top,
            self._mode,
        )

    def _want_top(self, settings: Sequence[RowSettings]) -> None:
        self.num_top = min(max(setting.top_logprobs for setting in settings), self.target.vocab_size)

    def _read_landed(self, landed: Tensor, active: list[bool], seconds: float | None = None) -> list[RowOutcome | None]:
        """`_read` for a result of the loop; `seconds` where the call that brought it ran to its end meanwhile."""
        assert self.loop is not None
        assert self.loop.landed_mode is not None
        depth, _ = self.loop.landed_mode
        is_ahead = self.target.device.type == "cuda"
        return self._read(landed.tolist(), active, depth, self.loop.landed_s if is_ahead else seconds)

    def _read(
        self, packed: list[list[float]], active: list[bool], depth: int | None, seconds: float | None
    ) -> list[RowOutcome | None]:
        width = (len(packed[0]) - 2) // (3 + 2 * self.num_top)
        outcomes: list[RowOutcome | None] = []
        for row, is_active in zip(packed, active, strict=True):
            outcomes.append(read_outcome(row, width, self.num_top, depth) if is_active else None)
        self.constraints.note([[] if outcome is None else outcome.tokens for outcome in outcomes])
        self.times.constraint_s = self.constraints.seconds
        if self.guard is not None and depth is not None:
            # What is shown to an observer takes longer than it would otherwise.
            self.guard.hear_time(depth, seconds if self.observer is None else None)
            self._lag.note(outcomes)
        for policy in self.policies:
            policy.note(outcomes)
        self.longest = int(max(row[2 * width + 2] for row in packed))
        for runner, _ in self._runners:
            runner.note_longest(self.longest)
        return outcomes
