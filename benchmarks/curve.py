"""Figure of held-out samples over the steps of a run, as an SVG: benchmarks/curve.py RUN STREAM FIGURE FILE.svg."""

import sys
from pathlib import Path

import mmmask

WIDTH, HEIGHT, MARGIN = 560, 300, 48


def curve(points: list[tuple[int, float]], title: str) -> str:
    """A line through (step, share), with its values."""
    last, highest = points[-1][0], max(value for _, value in points) * 1.1

    def place(step: int, value: float) -> str:
        x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
        return f"{x:.1f},{HEIGHT - MARGIN - value / highest * (HEIGHT - 2 * MARGIN):.1f}"

    path = " ".join(place(*point) for point in points)
    marks = []
    for step, value in points:
        x, y = place(step, value).split(",")
        marks.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#2a6fdb"/>')
        marks.append(f'<text x="{x}" y="{float(y) - 8:.1f}" text-anchor="middle">{value:.1%}</text>')
        marks.append(f'<text x="{x}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{step}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="10"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{WIDTH / 2}" y="20" text-anchor="middle" font-size="13">{title}</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">step</text>'
        f'<polyline points="{path}" fill="none" stroke="#2a6fdb" stroke-width="2"/>{"".join(marks)}</svg>\n'
    )


if __name__ == "__main__":
    folder, stream, figure, target = sys.argv[1:]
    found = mmmask.load_run(folder).evaluations
    points = [(line["step"], line[figure]) for line in found if line["stream"] == stream]
    Path(target).write_text(curve(points, f"{figure} of {stream} while it trains"))
