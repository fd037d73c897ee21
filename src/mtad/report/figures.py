"""Figures as SVG texts, readable on light and on dark paper."""

import io
from collections.abc import Sequence
from typing import Any

from mtad.errors import ConfigError

_INK = "#7a828e"
_COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#84cc16")
_MARKERS = "osD^vP*X"
_MOST_BARS = 24
Rows = Sequence[dict[str, Any]]


def draw_pareto(rows: Rows) -> str:
    """Speed against perplexity of one task's contenders; those that none beats in both are joined by a line."""
    figure, axes = _axes(6.4, 4.2)
    points = []
    for place, row in enumerate(rows):
        speed, perplexity = _speed(row), row["decoding"]["perplexity"]
        points.append((speed["value"], perplexity["value"]))
        axes.errorbar(
            [speed["value"]],
            [perplexity["value"]],
            xerr=_borders(speed),
            yerr=_borders(perplexity),
            fmt=_MARKERS[place // len(_COLOURS) % len(_MARKERS)],
            color=_COLOURS[place % len(_COLOURS)],
            label=row["contender"],
            elinewidth=0.8,
        )
    front = pareto_front(points)
    axes.plot([x for x, _ in front], [y for _, y in front], color=_INK, linewidth=1, linestyle="--", zorder=0)
    axes.set_xlabel("speed against single-token sampling" if _has_ratio(rows) else "tokens per call of the target")
    axes.set_ylabel("perplexity")
    _legend(axes)
    return _svg(figure)


def draw_scores(rows: Rows) -> str:
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
    return _svg(figure)


def draw_acceptance(rows: Rows) -> str:
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
    return _svg(figure)


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
    """A figure and its axes.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(f"figures need {error.name}; install it with pip install 'mtad[report]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    axes.tick_params(colors=_INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_INK)
    return figure, axes


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


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    # No date, so that the same record gives the same page.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
