"""Tables from what compare.py measured: `python report.py A.json B.json ...` prints Markdown, the best of each peer last."""

import json
import os
import sys
from pathlib import Path


def table(head: list[str], rows: list[list[str]]) -> str:
    ruler = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", ruler, *("| " + " | ".join(row) + " |" for row in rows)])


def mib(kib: float) -> str:
    return f"{kib / 1024:.0f}"


def answer(contender: dict) -> str:
    error = contender["relative_error"]
    same = "" if contender["top1_equal"] else ", top-1 differs"
    return "not finite" if error is None else f"{100 * error:.1f} %{same}"


def run(measured: dict) -> str:
    """One network on one number of threads: times, or starting if that was measured."""
    title = f"### {measured['network']}, {measured['threads']} thread{'s' if measured['threads'] != 1 else ''}"
    contenders = measured["contenders"]
    if any("ratio" in c for c in contenders.values()):
        head = ["contender", "median ms", "p10 to p90", "ratio", "CPU ms", "ratio", "error"]
        rows = [
            [
                name,
                f"{c['median_ms']:.2f}",
                f"{c['p10_ms']:.2f} to {c['p90_ms']:.2f}",
                f"{c['ratio']:.2f}",
                f"{c['cpu_ms']:.2f}",
                f"{c['cpu_ratio']:.2f}",
                answer(c),
            ]
            for name, c in contenders.items()
        ]
    else:
        head = ["contender", "file MiB", "load ms", "first result ms", "peak MiB", "before the model", "for the model", "error"]
        rows = [
            [
                name,
                f"{c['bytes'] / 2**20:.1f}",
                f"{c['load_ms']:.1f}",
                f"{c['first_ms']:.1f}",
                mib(c["peak_kib"]),
                mib(c["imported_kib"]),
                mib(c["peak_kib"] - c["imported_kib"]),
                answer(c),
            ]
            for name, c in contenders.items()
        ]
    parts = [title, table(head, rows)]
    if "load" in measured:
        parts.append(f"Load average of the machine before and after: {measured['load'][0]}, {measured['load'][1]}.")
    if measured.get("meetings_us"):
        low, high = min(measured["meetings_us"]), max(measured["meetings_us"])
        parts.append(f"Threads met within {low:.1f} to {high:.1f} us before the rounds.")
    parts += [f"- {name} did not run: {reason}" for name, reason in measured["skipped"].items()]
    return "\n\n".join(parts) + "\n"


def best(runs: list[dict]) -> str:
    """The best ratio of each peer; whoever computed in float is named so."""
    peers: list[str] = []
    rows = []
    for measured in runs:
        found: dict[str, tuple[float, str]] = {}
        for name, c in measured["contenders"].items():
            if "ratio" in c:
                peer, _, way = name.partition(" ")
                kind = "float" if way in ("f32", "float") else "int8"
                key = name if c["kind"] == "hawqc" else f"{peer} {kind}"
                found[key] = min(found.get(key, (float("inf"), "")), (c["ratio"], f"{c['ratio']:.2f}"))
        if found:
            peers += [p for p in found if p not in peers]
            rows.append((f"{measured['network']}, {measured['threads']}", found))
    lines = [[title, *(found.get(p, (0, "-"))[1] for p in peers)] for title, found in rows]
    return table(["network, threads", *peers], lines) + "\n" if lines else ""


def document(result: dict) -> str:
    machine = result["machine"]
    versions, did = {}, {}
    for measured in result["runs"]:
        for name, c in measured["contenders"].items():
            versions[c["kind"]] = c["version"]
            if "did" in c:
                did.setdefault(name, f"{name}, {measured['network']}: {c['did']}")
    parts = [
        f"{machine['cpu']}; {' '.join(machine['features'])}; {machine['cpus']} CPUs; {machine['system']}. {result['date']}.",
        "Versions: " + ", ".join(f"{kind} {version}" for kind, version in versions.items()) + ".",
        best(result["runs"]),
        *(run(measured) for measured in result["runs"]),
    ]
    if did:
        parts.append("What each says it executed:\n\n" + "\n".join(f"- {line}" for line in did.values()))
    return "\n\n".join(part for part in parts if part) + "\n"


def write(result: dict, out: Path) -> None:
    for suffix, text in ((".json", json.dumps(result, indent=1) + "\n"), (".md", document(result))):
        target = out.with_name(out.name + suffix)
        temporary = target.with_name(target.name + ".part")
        temporary.write_text(text)
        os.replace(temporary, target)


def main() -> None:
    results = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    if not results:
        raise SystemExit(__doc__)
    for result in results:
        print(document(result))


if __name__ == "__main__":
    main()
