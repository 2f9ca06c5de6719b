"""Charts as SVG text: bars, a curve on logarithmic axes, a map of densities."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

_WIDTH, _HEIGHT = 360, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 22
_INNER_WIDTH, _INNER_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_MAP_COLUMNS, _MAP_MOST_ROWS = 90, 90


def bar_chart(
    title: str,
    counts: np.ndarray,
    labels: Sequence[str],
    every: int,
    hints: Sequence[str] | None = None,
) -> str:
    """Bars from left to right.

    Args:
      title: above the chart.
      counts: int [n].
      labels: [n], under the bars; empty for none.
      every: only each so-manieth label is shown.
      hints: [n], shown with the count when pointing at a bar; None takes the labels.
    """
    most = max(1, int(counts.max()))
    width = _INNER_WIDTH / len(counts)
    marks = []
    for i, count in enumerate(counts.tolist()):
        height = _INNER_HEIGHT * count / most
        hint = f"{(hints or labels)[i]}: {count:,}"
        marks.append(
            f'<rect class="mark" x="{_LEFT + i * width + 0.5:.1f}" '
            f'y="{_TOP + _INNER_HEIGHT - height:.1f}" width="{max(width - 1, 0.5):.1f}" '
            f'height="{height:.1f}"><title>{html.escape(hint)}</title></rect>'
        )
        if labels[i] and i % every == 0:
            x = _LEFT + (i + (0.5 if every == 1 else 0)) * width
            marks.append(_text(x, _HEIGHT - 8, labels[i], "middle"))
    return _figure(title, [*_count_axis([0, most / 2, most], [0, 0.5, 1]), *marks])


def curve_chart(title: str, counts: np.ndarray) -> str:
    """Falling counts by rank, both logarithmic.

    Args:
      title: above the chart.
      counts: int [n], falling.
    """
    counts = counts[counts > 0]
    if len(counts) == 0:
        return _figure(title, [_text(_WIDTH / 2, _HEIGHT / 2, "no items", "middle")])
    ranks = np.unique(np.geomspace(1, len(counts), 160).astype(np.int64))
    high_rank, high_count = np.log10(max(len(counts), 10)), np.log10(max(int(counts[0]), 10))
    x = _LEFT + _INNER_WIDTH * np.log10(ranks) / high_rank
    y = _TOP + _INNER_HEIGHT * (1 - np.log10(counts[ranks - 1]) / high_count)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    marks = [f'<polyline class="line" points="{points}"/>']
    for power in range(int(high_rank) + 1):
        marks.append(
            _text(_LEFT + _INNER_WIDTH * power / high_rank, _HEIGHT - 8, f"{10**power:,}", "middle")
        )
    powers = range(int(high_count) + 1)
    axis = _count_axis([10**power for power in powers], [power / high_count for power in powers])
    return _figure(title, [*axis, *marks])


def density_map(title: str, latitudes_deg: np.ndarray, longitudes_deg: np.ndarray) -> str:
    """Where events are, as squares the darker the more; the outer half percents are left out.

    Args:
      title: above the map.
      latitudes_deg, longitudes_deg: float [n], n > 0.
    """
    # Places of events, not points between them: of two events, both are inside.
    south, north = _outer_quantiles(latitudes_deg)
    west, east = _outer_quantiles(longitudes_deg)
    shrink = max(0.05, float(np.cos(np.radians((south + north) / 2))))
    size = max((east - west) * shrink, (north - south), 1e-3) / _MAP_COLUMNS
    columns = ((longitudes_deg - west) * shrink / size).astype(np.int64)
    rows = ((north - latitudes_deg) / size).astype(np.int64)
    inside = (latitudes_deg <= north) & (longitudes_deg >= west)
    inside &= (columns <= _MAP_COLUMNS) & (rows <= _MAP_MOST_ROWS) & (columns >= 0) & (rows >= 0)
    cells, counts = np.unique(
        rows[inside] * (_MAP_COLUMNS + 1) + columns[inside], return_counts=True
    )
    if len(cells) == 0:
        return _figure(title, [_text(_WIDTH / 2, _HEIGHT / 2, "too scattered", "middle")])
    shades = 0.12 + 0.88 * np.log1p(counts) / np.log1p(counts.max())
    scale = _WIDTH / (_MAP_COLUMNS + 1)
    marks = []
    for cell, count, shade in zip(cells.tolist(), counts.tolist(), shades.tolist(), strict=True):
        row, column = divmod(cell, _MAP_COLUMNS + 1)
        marks.append(
            f'<rect class="mark" opacity="{shade:.2f}" x="{column * scale:.1f}" '
            f'y="{row * scale:.1f}" width="{scale:.1f}" height="{scale:.1f}">'
            f"<title>{count:,} events</title></rect>"
        )
    height = scale * (int((cells // (_MAP_COLUMNS + 1)).max()) + 1)
    words = f"{south:.3f} to {north:.3f} north, {west:.3f} to {east:.3f} east"
    marks.append(_text(0, height + 12, words, "start"))
    return _figure(title, marks, height + 18)


def _outer_quantiles(degrees: np.ndarray) -> tuple[float, float]:
    low = np.quantile(degrees, 0.005, method="lower")
    return float(low), float(np.quantile(degrees, 0.995, method="higher"))


def _count_axis(values: Sequence[float], levels: Sequence[float]) -> list[str]:
    parts = []
    for value, level in zip(values, levels, strict=True):
        y = _TOP + _INNER_HEIGHT * (1 - level)
        parts.append(
            f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 4, y + 3, _short(value), "end"))
    return parts


def _short(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _figure(title: str, marks: Sequence[str], height: float = _HEIGHT) -> str:
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{html.escape(title)}">'
        + "".join(marks)
        + "</svg></figure>\n"
    )
