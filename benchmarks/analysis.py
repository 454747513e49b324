"""How fast questions are answered, beside peers and floors: `python -m benchmarks.analysis [SIZE]`.

Each part measures its tasks in turn with their peers, on a synthetic int8 map of SIZE x SIZE x 128 (1024 by default):
similarity, search and places; clusters, components and segments; change, trend and novelty.
"""

import argparse

from benchmarks import analysis_clusters, analysis_novelty, analysis_similarity

PARTS = (analysis_similarity, analysis_clusters, analysis_novelty)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", type=int, nargs="?", default=1024, help="pixels a side")
    size = parser.parse_args().size
    print(f"| task | s | beside | its s | ratio | of what | wanted | extra MB |\n|---|{'---:|' * 7}")
    for part in PARTS:
        for row in part.rows(size):
            kind = row.get("ratio_is") or row.get("kind", "")
            cells = [row["task"], number(row["seconds"]), row["peer"], number(row["peer_seconds"])]
            cells += [number(row["ratio"]), kind, row["wanted"], number(row["peak_mb"])]
            print("| " + " | ".join(cells) + " |", flush=True)


def number(value: float) -> str:
    """Return three significant digits; nothing for what was not measured."""
    return "" if value is None or value != value else f"{value:.3g}"


if __name__ == "__main__":
    main()
