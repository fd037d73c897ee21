"""Rows of a trace become steps that rules can judge, over the few tokens that occur in them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mtad.decoding.sparse import ReducedVocabulary, sort_keys
from mtad.results.trace_format import Array, Column, Columns
from mtad.results.trace_reader import StepBatch
from mtad.structures import RowControls, RowSettings, TokenTree, ancestor_bitmask


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSteps:
    """Steps of one shape, each over a vocabulary of its own: the tokens that occur in it, in their order.

    Attributes:
        prompts: Prompt that each step belongs to, `[steps]` integers.
        numbers: Which step of its prompt each is, `[steps]` integers.
        rooms: Tokens still wanted when the step started, `[steps]` int64.
        rows: Settings and positions; the warp has been applied, so temperatures and filters have no meaning.
        tree: The draft, in numbers of the reduced vocabulary.
        target_log_probs: Warped natural logs, `[steps, 1 + nodes, size]`.
        unwarped_log_probs: Unwarped natural logs of the same tokens, `[steps, 1 + nodes, size]`.
        token_ids: Token of every number, -1 where it stands for unlisted tokens, `[steps, size]` int64.
        is_partial: Steps in which some distribution is not listed in full, `[steps]` bool.
        opens_span: Nodes whose token may open a strict span, `[steps, nodes]` bool.
        path_nodes: The recorded decision, as in `Acceptance`, `[steps, gamma]` int64.
        next_token_ids: The recorded token after the kept path, `[steps]` int64.
    """

    prompts: Array
    numbers: Array
    rooms: Tensor
    rows: RowControls
    tree: TokenTree
    target_log_probs: Tensor
    unwarped_log_probs: Tensor
    token_ids: Tensor
    is_partial: Array
    opens_span: Tensor
    path_nodes: Tensor
    next_token_ids: Tensor


def recorded_steps(batch: StepBatch) -> Iterator[RecordedSteps]:
    """The steps of a batch, those of equal shape together."""
    shapes: dict[tuple[object, ...], list[int]] = {}
    for place, shape in enumerate(_shapes(batch)):
        shapes.setdefault(shape, []).append(place)
    for places in shapes.values():
        yield _rebuild(batch.take(np.array(places)).columns(), len(places))


def _shapes(batch: StepBatch) -> Iterator[tuple[object, ...]]:
    """What steps must share to be judged together, step by step."""
    num_nodes = batch.column("tokens")[1].tolist()
    num_drawn = batch.column("draft_tokens")[2].tolist()
    branchings = _split(batch.column("branching"))
    depths, replacements = batch.column("max_depth")[0].tolist(), batch.column("has_replacement")[0].tolist()
    for shape in zip(num_nodes, num_drawn, branchings, depths, replacements, strict=True):
        yield (shape[0], shape[1], tuple(shape[2].tolist()), *shape[3:])


def _split(column: Column) -> list[Array]:
    return np.split(column[0], np.cumsum(column[1])[:-1])


def _rebuild(columns: Columns, num_steps: int) -> RecordedSteps:
    tokens = sort_keys(_matrix(columns["tokens"], num_steps))
    steps_of_tokens = np.repeat(np.arange(num_steps), tokens.shape[1])
    target, draft = _Laws(columns, "target"), _Laws(columns, "draft")
    occurring = np.concatenate([target.keys, draft.keys, tokens.ravel()])
    vocabulary = ReducedVocabulary(occurring, np.concatenate([target.steps, draft.steps, steps_of_tokens]), num_steps)
    numbers = vocabulary.numbers(tokens.ravel(), steps_of_tokens).reshape(tokens.shape)
    draft_log_probs = draft.dense(columns["draft_log_probs"][0], vocabulary) if draft.num_places else None
    is_partial = np.bincount(target.steps, target.keys % 2 == 0, num_steps) > 0
    is_partial |= np.bincount(draft.steps, draft.keys % 2 == 0, num_steps) > 0
    return RecordedSteps(
        prompts=columns["row"][0],
        numbers=columns["step"][0],
        rooms=_integers(columns["room"]),
        rows=_rows(columns),
        tree=_tree(columns, torch.from_numpy(numbers), draft_log_probs),
        target_log_probs=target.dense(columns["target_log_probs"][0], vocabulary),
        unwarped_log_probs=target.dense(columns["unwarped_log_probs"][0], vocabulary),
        token_ids=torch.from_numpy(vocabulary.token_ids),
        is_partial=is_partial,
        opens_span=torch.from_numpy(_matrix(columns["opens_span"], num_steps)),
        path_nodes=_paths(columns),
        next_token_ids=_integers(columns["next_token"]),
    )


class _Laws:
    """Where the entries of one kind of distributions belong."""

    def __init__(self, columns: Columns, name: str) -> None:
        entries, counts, num_places = columns[f"{name}_tokens"]
        self.num_places = int(num_places[0])
        self.num_steps = len(num_places)
        self.keys = sort_keys(entries)
        law = np.repeat(np.arange(len(counts)), counts)
        self.steps, self.places = np.divmod(law, max(self.num_places, 1))

    def dense(self, values: Array, vocabulary: ReducedVocabulary) -> Tensor:
        """Values of the entries over the reduced vocabulary, -inf elsewhere, `[steps, places, size]`."""
        full = np.full((self.num_steps, self.num_places, vocabulary.size), -np.inf, dtype=values.dtype)
        full[self.steps, self.places, vocabulary.numbers(self.keys, self.steps)] = values
        return torch.from_numpy(full)


def _tree(columns: Columns, tokens: Tensor, draft_log_probs: Tensor | None) -> TokenTree:
    num_steps = len(tokens)
    parents = torch.from_numpy(_matrix(columns["parents"], num_steps)).long()
    depth = int(columns["max_depth"][0][0])
    num_branchings = int(columns["branching"][1][0])
    return TokenTree(
        tokens=tokens,
        parents=parents,
        depths=torch.from_numpy(_matrix(columns["depths"], num_steps)).long(),
        joint_draft_log_probs=torch.from_numpy(_matrix(columns["joint_draft_log_probs"], num_steps)),
        ancestors=ancestor_bitmask(parents, depth),
        winner=_integers(columns["winner"]),
        valid=torch.from_numpy(_matrix(columns["valid"], num_steps)),
        carried=torch.from_numpy(_matrix(columns["carried"], num_steps)),
        draft_log_probs=draft_log_probs,
        branching=tuple(columns["branching"][0][:num_branchings].tolist()) or None,
        has_replacement=bool(columns["has_replacement"][0][0]),
        depth=depth,
    )


def _rows(columns: Columns) -> RowControls:
    num_steps = len(columns["row"][0])
    return replace(
        RowControls.from_settings([RowSettings()] * num_steps, one_hot_at_zero=False),
        seeds=_integers(columns["seed"]),
        positions=_integers(columns["position"]),
        is_greedy=torch.from_numpy(columns["is_greedy"][0].copy()),
        log_thresholds=torch.from_numpy(columns["log_threshold"][0].copy()),
        is_strict=torch.from_numpy(columns["is_strict"][0].copy()),
    )


def _paths(columns: Columns) -> Tensor:
    """Kept nodes with -1 behind the end, `[steps, gamma]` int64."""
    nodes, lengths = columns["path"]
    paths = np.full((len(lengths), int(columns["max_depth"][0][0])), -1, dtype=np.int64)
    paths[np.arange(paths.shape[1]) < lengths[:, np.newaxis]] = nodes
    return torch.from_numpy(paths)


def _matrix(column: Column, num_steps: int) -> Array:
    """Lists of equal length as one array of its own, `[steps, length]`."""
    matrix: Array = column[0].reshape(num_steps, -1).copy()
    return matrix


def _integers(column: Column) -> Tensor:
    return torch.from_numpy(column[0].astype(np.int64))
