"""Figures as SVG texts, readable on light and on dark paper."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtad.errors import ConfigError

_INK = "#7a828e"
_COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#84cc16")
_MARKERS = "osD^vP*X"
_MOST_BARS = 24
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure as vectors, without a background, and as pixels on white."""

    svg: str
    png: bytes


def draw_pareto(rows: Rows) -> Drawing:
    """Speed against perplexity of one task's contenders; those that none beats in both are joined by a line."""
    return _draw_front(rows, "perplexity", [row["decoding"]["perplexity"] for row in rows], is_less_better=True)


def draw_quality(rows: Rows) -> Drawing:
    """Speed against the score, drawn likewise."""
    return _draw_front(rows, "score", [row["score"] for row in rows], is_less_better=False)


def _draw_front(rows: Rows, name: str, heights: Rows, *, is_less_better: bool) -> Drawing:
    figure, axes = _axes(6.4, 4.2)
    points = []
    for place, (row, height) in enumerate(zip(rows, heights, strict=True)):
        speed = _speed(row)
        points.append((speed["value"], height["value"] if is_less_better else -height["value"]))
        axes.errorbar(
            [speed["value"]],
            [height["value"]],
            xerr=_borders(speed),
            yerr=_borders(height),
            fmt=_MARKERS[place // len(_COLOURS) % len(_MARKERS)],
            color=_COLOURS[place % len(_COLOURS)],
            label=row["contender"],
            elinewidth=0.8,
        )
    front = pareto_front(points)
    tops = [y if is_less_better else -y for _, y in front]
    axes.plot([x for x, _ in front], tops, color=_INK, linewidth=1, linestyle="--", zorder=0)
    axes.set_xlabel("speed against single-token sampling" if _has_ratio(rows) else "tokens per call of the target")
    axes.set_ylabel(name)
    _legend(axes)
    return _drawing(figure)


def draw_scores(rows: Rows) -> Drawing:
    """Scores of one task's contenders with their intervals."""
    figure, axes = _axes(6.4, 0.9 + 0.32 * min(len(rows), _MOST_BARS))
    shown = list(rows[:_MOST_BARS])[::-1]
    for place, row in enumerate(shown):
        score = row["score"]
        colour = _COLOURS[(len(shown) - 1 - place) % len(_COLOURS)]
        axes.barh(place, score["value"], xerr=_borders(score), color=colour, ecolor=_INK, height=0.6)
    axes.set_yticks(range(len(shown)), [row["contender"] for row in shown])
    axes.set_xlim(left=0)
    axes.set_xlabel("score")
    return _drawing(figure)


def draw_acceptance(rows: Rows) -> Drawing:
    """Share of iterations that kept at least so many drafted tokens."""
    figure, axes = _axes(6.4, 3.6)
    for place, row in enumerate(rows):
        shares = row["decoding"]["acceptance_by_depth"]
        if shares:
            colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place // len(_COLOURS) % len(_MARKERS)]
            axes.plot(range(1, len(shares) + 1), shares, marker=marker, color=colour, label=row["contender"])
    axes.set_xlabel("drafted tokens kept, at least")
    axes.set_ylabel("share of iterations")
    axes.set_ylim(0, 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes)
    return _drawing(figure)


def draw_energy(rows: Rows) -> Drawing:
    """Joules per token against speed and against perplexity; without joules, speed against perplexity."""
    has_joules = all(row["joules_per_token"] is not None for row in rows)
    figure, axes = _figure(8.4, 3.8, 2) if has_joules else _figure(6.4, 3.8, 1)
    for place, row in enumerate(rows):
        style = {
            "fmt": _MARKERS[place // len(_COLOURS) % len(_MARKERS)],
            "color": _COLOURS[place % len(_COLOURS)],
            "label": row["label"],
            "elinewidth": 0.8,
        }
        speed, perplexity = row["tokens_per_s"], row["perplexity"]
        if not has_joules:
            axes[0].errorbar([speed["value"]], [perplexity], xerr=_borders(speed), **style)
            continue
        joules = row["joules_per_token"]
        axes[0].errorbar([speed["value"]], [joules["value"]], xerr=_borders(speed), yerr=_borders(joules), **style)
        axes[1].errorbar([perplexity], [joules["value"]], yerr=_borders(joules), **style)
    axes[0].set_xlabel("tokens per second of work")
    axes[0].set_ylabel("joules per token" if has_joules else "perplexity (energy not measured)")
    if has_joules:
        axes[1].set_xlabel("perplexity")
        for axis in axes:
            axis.set_ylim(0, 1.1 * max(row["joules_per_token"]["high"] for row in rows))
    _legend(axes[-1])
    return _drawing(figure)


def draw_phases(rows: Rows) -> Drawing:
    """An iteration's drafting and scoring, each measured alone: joules where there are any, else milliseconds."""
    unit = "joules" if all(row["score_joules"] is not None for row in rows) else "ms"
    figure, axes = _axes(6.4, 0.9 + 0.32 * min(len(rows), _MOST_BARS))
    shown = list(rows[:_MOST_BARS])[::-1]
    for place, row in enumerate(shown):
        draft, score = row[f"draft_{unit}"] or 0.0, row[f"score_{unit}"]
        is_last = place == len(shown) - 1
        axes.barh(place, draft, color=_COLOURS[1], height=0.6, label="draft" if is_last else None)
        axes.barh(place, score, left=draft, color=_COLOURS[0], height=0.6, label="verify" if is_last else None)
    axes.set_yticks(range(len(shown)), [row["label"] for row in shown])
    axes.set_xlabel(f"{'joules' if unit == 'joules' else 'milliseconds'} an iteration")
    _legend(axes)
    return _drawing(figure)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both, larger first values and smaller second ones being better; sorted."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda item: (-item[0], item[1])):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front[::-1]


def _has_ratio(rows: Rows) -> bool:
    return all(row["decoding"]["speed_ratio"] is not None for row in rows)


def _speed(row: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = row["decoding"]["speed_ratio"] or row["decoding"]["tokens_per_call"]
    return found


def _borders(estimate: dict[str, float]) -> list[list[float]]:
    value = estimate["value"]
    return [[max(value - estimate["low"], 0.0)], [max(estimate["high"] - value, 0.0)]]


def _axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes; see `_figure`."""
    figure, axes = _figure(width, height, 1)
    return figure, axes[0]


def _figure(width: float, height: float, num_columns: int) -> tuple[Any, list[Any]]:
    """A figure and axes side by side.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(f"figures need {error.name}; install it with pip install 'mtad[report]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    columns = list(figure.subplots(1, num_columns, squeeze=False)[0])
    figure.patch.set_alpha(0)
    for axes in columns:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=_INK, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_INK)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(_INK)
    return figure, columns


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            fontsize=7,
            frameon=False,
            labelcolor=_INK,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
        )


def _drawing(figure: Any) -> Drawing:
    vector, pixels = io.StringIO(), io.BytesIO()
    # No date, so that the same record gives the same page.
    figure.savefig(vector, format="svg", metadata={"Date": None})
    text = vector.getvalue()
    # What reads pixels rarely says what lies behind them.
    figure.patch.set_alpha(1)
    figure.savefig(pixels, format="png", dpi=160, facecolor="white")
    return Drawing(svg=text[text.index("<svg") :], png=pixels.getvalue())
