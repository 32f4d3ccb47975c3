"""The chart: bars of each tool's time over the best peer's, a group for each table."""

import html

import report

BAR, GAP, LABEL, WIDTH, VALUE = 16, 26, 110, 480, 190
TIMES_MAX = 3.0
COLORS = {"ferry": "#d9480f", "peer": "#8a9bb0", "limit": "#c9d3df"}


def drawn(result):
    body, y = [], 58
    for table in tables(result):
        part, y = group(table, y)
        body += part
    body += axis(y)
    width, height = LABEL + WIDTH + VALUE, y + 34
    machine = result["machine"]
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(12, 22, "Time of a durable copy over that of the best peer (less is better)", 15),
        text(12, 40, f"{machine['cores']} cores, {machine['memory_gib']} GiB, "
                     f"{machine['kernel']}, {machine['file_system']}, {result['date']}", 11),
    ]
    return "\n".join(head + lines_of(y) + body + ["</svg>"]) + "\n"


def tables(result):
    every = result["tables"] + list(result.get("reflink", {}).values())
    return [table for table in every if table["best"]]


def group(table, y):
    parts = [text(12, y + 14, table["title"], 12, weight="bold")]
    y += 22
    for row in table["rows"]:
        parts += bar(table, row, y)
        y += BAR + 3
    return parts, y + GAP - 12


def bar(table, row, y):
    share = report.ratio(table, row)
    label = text(LABEL - 8, y + 12, short(row), 11, anchor="end")
    if share is None:
        return [label, text(LABEL + 6, y + 12, row.get("failed", "–"), 11)]
    shown = min(share, TIMES_MAX) / TIMES_MAX * WIDTH
    told = f"{report.times(share)} ×  ({report.seconds(report.measure.median(row, 'wall_s'))} s)"
    told += ", not kept sparse" if row.get("keeps") is False else ""
    told = f"→ {told}" if share > TIMES_MAX else told
    color = COLORS[row["kind"]]
    return [
        label,
        f'<rect x="{LABEL}" y="{y}" width="{shown:.1f}" height="{BAR}" fill="{color}"/>',
        text(LABEL + shown + 6, y + 12, told, 11),
    ]


def short(row):
    """The tool alone: its options are in the tables."""
    return row["tool"].split()[0].rstrip(":")


def lines_of(y):
    """Behind the bars: one for every half."""
    return [
        f'<line x1="{x}" y1="52" x2="{x}" y2="{y}" stroke="{color}" stroke-width="1"/>'
        for x, color in marks()
    ]


def marks():
    for half in range(int(TIMES_MAX * 2) + 1):
        yield LABEL + half * WIDTH / (TIMES_MAX * 2), "#555555" if half == 2 else "#e6e6e6"


def axis(y):
    return [
        text(x, y + 16, f"{half / 2:g} ×", 11, anchor="middle")
        for half, (x, _) in enumerate(marks())
    ]


def text(x, y, content, size, anchor="start", weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="#222222">{html.escape(content)}</text>'
    )
