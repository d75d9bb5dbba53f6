"""`host_chart.py file.svg`: draws what `npm run bench -- host --json` wrote, from stdin: a group of bars a row."""
import io
import json
import re
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


COLORS = matplotlib.colormaps["tab20"]


def label(way):
    ours = way.startswith(("default", "mapped", "copied", "lazy"))
    return f"this package, {way}" if ours else way.replace("_", " ")


def smaller(svg):
    """The chart is packed with the README: without what nobody sees it is a third as large."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<clipPath.*?</clipPath>", "", svg, flags=re.S)
    svg = re.sub(r'(<g) id="[^"]*"| clip-path="[^"]*"', r"\1", svg)
    svg = re.sub(r"(\d\.\d)\d+", r"\1", re.sub(r"\s+", " ", svg)).replace("> <", ">\n<")
    svg = svg.replace("; text-anchor: start", "")
    svg = re.sub(r'd="M (\S+) (\S+) L (\S+) \2 L \3 (\S+) L \1 \4 z "', r'd="M\1 \2H\3V\4H\1z"', svg)
    svg = re.sub(r'style="fill: (#\w+)"', r'fill="\1"', re.sub(r"<[?!][^>]*>\n", "", svg))
    svg = re.sub(r"<g>\n(<path [^>]*/>|<text.*</text>)\n</g>", r"\1", svg)
    svg = re.sub(r"font-family: [^;\"]*; |; font-family: [^;\"]*", "", svg)
    svg = re.sub(r" transform=\"rotate\(-0 [^\"]*\"|(?<=\d)\.0\b", "", svg)
    svg = svg.replace("</style>", "text{font-family: 'DejaVu Sans', sans-serif}</style>")
    return re.sub(r"<defs>\n</defs>\n", "", svg).strip() + "\n"


def main():
    facts = json.load(sys.stdin)
    figures = facts["figures"]
    rows = list(dict.fromkeys(figure["row"] for figure in figures))
    ways = list(dict.fromkeys(figure["way"] for figure in figures))
    # As text, in one font: half the bytes.
    plt.rcParams.update({"svg.hashsalt": "fastsafetensors-node", "svg.fonttype": "none"})
    plt.rcParams["font.sans-serif"] = ["DejaVu Sans"]
    chart, axes = plt.subplots(figsize=(9, 1.2 + 0.16 * len(rows) * (len(ways) + 1)))
    for i, row in enumerate(rows):
        for j, way in enumerate(ways):
            later = next((f["later"] for f in figures if f["row"] == row and f["way"] == way), None)
            if later is None:
                continue
            rate = later["bytes"] / later["seconds"] / 1e9
            at = i * (len(ways) + 1) + j
            axes.barh(at, rate, color=COLORS(j), label=label(way) if i == 0 else None)
            axes.text(rate, at, f" {rate:.1f}", va="center", fontsize=7)
    axes.set_yticks([i * (len(ways) + 1) + (len(ways) - 1) / 2 for i in range(len(rows))], rows)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("GB/s, until each page of each tensor was touched; medians of later loads of one process")
    axes.legend(fontsize=7, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    chart.tight_layout()
    drawn = io.StringIO()
    chart.savefig(drawn, format="svg", metadata={"Date": None, "Title": "Loads into host memory, in GB/s"})
    with open(sys.argv[1], "w") as file:
        file.write(smaller(drawn.getvalue()))


main()
