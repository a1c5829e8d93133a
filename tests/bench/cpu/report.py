"""The bench's figures as words: python tests/bench/cpu/report.py.

Makes results/cpu.md and cpu.svg out of cpu.json and fidelity.json, and the block of README.md between MARKS out of
cpu.json, tab.json and export.json; tests/test_readme.py holds both to the committed figures.
"""

from __future__ import annotations

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
README = RESULTS.parents[2] / "README.md"
MARKS = "<!-- measured -->\n", "<!-- /measured -->\n"
NATIVE, OURS, PLAIN, TWO = "native onnxruntime", "ours", "ours, plain SIMD", "ours, two threads"
PEERS = Q8, WLLAMA = "transformers.js q8", "wllama Q4_1"
Result = dict[str, Any]


def rounded(value: Any) -> Any:
    """``value`` with floats cut to four digits after the point, for a file that people may read."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def median(result: Result, task: str, runtime: str, field: str, stop: int = -1) -> float:
    """Over the rounds, of one stop's ``field``."""
    return statistics.median(points[stop][field] for points in result["figures"][task][runtime])


def speed(result: Result, task: str, runtime: str, stop: int = -1) -> float:
    """Tokens per second of decoding."""
    return 1000 / median(result, task, runtime, "milliseconds", stop)


def agreement(result: Result, runtime: str) -> str:
    """How many decoded tokens are those that native onnxruntime answered, up to the first that is not."""
    same = total = 0
    figures = result["figures"]["decode"]
    for (point,), (wanted,) in zip(figures[runtime], figures[NATIVE], strict=True):
        pairs = list(zip(point["output"], wanted["output"], strict=False))
        total += len(wanted["output"])
        same += next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return f"{same} of {total}" if any(point["output"] for (point,) in figures[runtime]) else "not asked"


def markdown(result: Result, fidelity: Result) -> str:
    """The whole report of the speeds in cpu.json and the faithfulness in fidelity.json."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    load = result["load"]
    rounds = {name: [len(figures[name]) for figures in result["figures"].values() if name in figures] for name in PEERS}
    lines = [
        "# SmolLM2-135M-Instruct on the CPU",
        "",
        f"{result['machine']}, {result['date']}, {result['minutes']} minutes, one run with everybody interleaved; one "
        f"thread where nothing else is said. Load average {load['start']} at the start (before anything was opened), "
        f"{load['end']} at the end. {versions}.",
        "",
        f"Medians of {len(result['figures']['decode'][OURS])} rounds; wllama's 518-token prompt "
        f"{rounds[WLLAMA][1]} rounds, native onnxruntime against context "
        f"{len(result['figures']['context'][NATIVE])}. Native onnxruntime runs our graph in CPython at accuracy_level "
        "4; transformers.js runs dynamic int8 of the same checkpoint on WASM; wllama runs the GGUF that the export is "
        "made from.",
        "",
        "| runtime | decode after 50 tokens, tokens/s | 518-token prompt, s | spread of rounds (decode; prompt) | "
        "greedy tokens as native's |",
        "|---|---|---|---|---|",
    ]
    for name in (NATIVE, OURS, PLAIN, TWO, *PEERS):
        spread = "; ".join(
            f"{1000 / max(values):.1f}–{1000 / min(values):.1f}"
            if field == "milliseconds"
            else f"{min(values):.2f}–{max(values):.2f}"
            for task, field in (("decode", "milliseconds"), ("prompt", "seconds"))
            for values in [[points[0][field] for points in result["figures"][task][name]]]
        )
        lines.append(
            f"| {name} | {speed(result, 'decode', name):.1f} | {median(result, 'prompt', name, 'seconds'):.2f} | "
            f"{spread} | {agreement(result, name)} |"
        )
    lines += ["", "| ours, in ratios | measured |", "|---|---|"]
    lines += [f"| {words} | {value} |" for words, value in ratios(result).items()]
    lines += [
        "",
        "No kernel uses an 8-bit dot product, so that CPUs without VNNI lose nothing.",
        "",
        f"Faithfulness on {fidelity['positions']:,} positions of a text that nothing was tuned on (heldout.txt), "
        f"against the checkpoint in float32, whose perplexity there is {fidelity['perplexity']:.2f}; ours "
        f"in Chromium {fidelity['chromium']}, the others natively (wllama was not asked):",
        "",
        "| runtime | same likeliest token | perplexity / float32 |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {each['likeliest']:.2%} | {each['ratio']:.4f} |" for name, each in fidelity["runtimes"].items()
    ]
    lines += ["", "![Speed against context length, against peers and against perplexity](cpu.svg)", ""]
    return "\n".join(lines)


def ratios(result: Result) -> dict[str, str]:
    """What the figures say, relative to peers and to each other."""
    ours, prompt = speed(result, "decode", OURS), median(result, "prompt", OURS, "seconds")
    prompts = {name: median(result, "prompt", name, "seconds") for name in (NATIVE, PLAIN, TWO, *PEERS)}
    speeds = {name: speed(result, "decode", name) for name in prompts}
    best, first = max(PEERS, key=lambda name: speeds[name]), min(PEERS, key=lambda name: prompts[name])
    turn = median(result, "second turn", OURS, "seconds") / median(result, "cold turn", OURS, "seconds")
    return {
        f"decode / best browser peer ({best})": f"{ours / speeds[best]:.2f}",
        "decode / wllama": f"{ours / speeds[WLLAMA]:.2f}",
        "decode / native onnxruntime": f"{ours / speeds[NATIVE]:.2f}",
        f"prompt / best browser peer ({first}), seconds": f"{prompt / prompts[first]:.3f}",
        "prompt / native onnxruntime, seconds": f"{prompt / prompts[NATIVE]:.2f}",
        "second turn (40 new tokens after 1,000) / cold, seconds": f"{turn:.3f}",
        "decode at 4,096 tokens / at 100": f"{speed(result, 'context', OURS) / speed(result, 'context', OURS, 0):.2f}",
        "two threads / one, decode": f"{speeds[TWO] / ours:.2f}",
        "two threads / one, prompt": f"{prompt / prompts[TWO]:.2f}",
        "plain / relaxed SIMD, decode": f"{speeds[PLAIN] / ours:.2f}",
        "plain / relaxed SIMD, prompt": f"{prompt / prompts[PLAIN]:.2f}",
    }


def readme(result: Result, tab: Result, export: Result) -> str:
    """What README.md says of speed, memory and the export."""
    npm = result["versions"]
    names = [OURS, Q8, WLLAMA, NATIVE]
    speeds = {name: speed(result, "decode", name) for name in names}
    prompts = {name: median(result, "prompt", name, "seconds") for name in names}
    turns = [median(result, task, OURS, "seconds") for task in ("second turn", "cold turn")]
    long = [speed(result, "context", OURS, stop) for stop in (-1, 0)]
    faster = [f"{speeds[name]:.1f} ({speeds[OURS] / speeds[name]:.1f}× slower)" for name in PEERS]
    sooner = [f"{prompts[name]:.1f} s ({prompts[name] / prompts[OURS]:.1f}× longer)" for name in PEERS]
    two = speed(result, "decode", TWO) / speeds[OURS]
    visit = statistics.median(tab["first_token_seconds"])
    lines = [
        f"SmolLM2-135M-Instruct on one thread of a {result['machine']}, everybody interleaved in one run, medians of "
        f"{len(result['figures']['decode'][OURS])} rounds:",
        "",
        f"| | Handbill in Chromium | transformers.js {npm['@huggingface/transformers']}, int8 "
        f"| wllama {npm['@wllama/wllama']}, the same int4 weights "
        f"| native onnxruntime {npm['onnxruntime']}, our graph |",
        "|---|---|---|---|---|",
        f"| tokens/s after 50 tokens | {speeds[OURS]:.1f} | {' | '.join(faster)} | {speeds[NATIVE]:.1f} |",
        f"| first token of a 518-token prompt | {prompts[OURS]:.1f} s | {' | '.join(sooner)} "
        f"| {prompts[NATIVE]:.1f} s |",
        "",
        f"- At 4,096 tokens of context Handbill decodes {long[0]:.1f} tokens/s, "
        f"{long[0] / long[1]:.2f} of what it does at 100 in the same run.",
        f"- A second turn of 40 tokens after 1,000 begins after {turns[0]:.2f} s; reading all of it anew takes "
        f"{turns[1]:.1f} s.",
        f"- Two threads decode {two:.2f} times as fast.",
        f"- With the model stored, a visit has its first token {visit:.1f} s after navigation ({tab['runtime']}). The "
        f"tab takes {tab['tab_megabytes']:.0f} MB more than an empty one; the weights are {tab['model_megabytes']:.0f} "
        f"MB. A first visit downloads {tab['first_visit_sent_bytes'] / 1e6:.0f} MB, runtime and model.",
        f"- The export takes {export['seconds']:.0f} s and {export['peak_megabytes'] / 1000:.1f} GB of memory and "
        f"makes {export['nodes']} nodes and {export['bytes'] / 1e6:.1f} MB; run by native onnxruntime its perplexity "
        f"is {export['perplexity_ratio']:.4f} of the checkpoint's.",
    ]
    wrapped = [line if "|" in line else _wrap(line) for line in lines]
    return "\n".join(wrapped)


def _wrap(line: str) -> str:
    return textwrap.fill(line, 120, subsequent_indent="  " if line.startswith("-") else "", break_on_hyphens=False)


def plot(result: Result, fidelity: Result, path: Path) -> None:
    """Speed against context length, bars against peers, and speed against perplexity with a model's bytes as area."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "handbill"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    figure, ((left, faithful), (middle, right)) = pyplot.subplots(2, 2, figsize=(9, 7), layout="constrained")
    colours = {OURS: "#0b6e4f", NATIVE: "#8a8f98", Q8: "#c58b2a", WLLAMA: "#b4553a"}
    for name in (OURS, NATIVE):
        points = result["figures"]["context"][name][0]
        values = [speed(result, "context", name, stop) for stop in range(len(points))]
        left.plot([point["at"] for point in points], values, marker="o", color=colours[name], label=name)
    left.set(title="Decode against context", xlabel="tokens of context", ylabel="tokens/s", ylim=(0, None))
    left.legend(frameon=False)
    for axes, title, values in (
        (middle, "Decode after 50 tokens, tokens/s", [speed(result, "decode", name) for name in colours]),
        (right, "First token of 518, seconds", [median(result, "prompt", name, "seconds") for name in colours]),
    ):
        bars = axes.barh(list(colours), values, color=list(colours.values()))
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.set(title=title)
        axes.invert_yaxis()
        axes.margins(x=0.15)
    for name, each in fidelity["runtimes"].items():
        if name in colours:
            place = (each["ratio"], speed(result, "decode", name))
            faithful.scatter(*place, s=each["bytes"] / 4e5, color=colours[name], alpha=0.6)
            faithful.annotate(f"{name}, {each['bytes'] / 1e6:.0f} MB", place, ha="center", va="bottom", fontsize=8)
    faithful.set(title="Decode against perplexity", xlabel="perplexity / float32", ylabel="tokens/s", ylim=(0, None))
    faithful.margins(x=0.3, y=0.3)
    for axes in (left, faithful, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def load(folder: Path, name: str) -> Result:
    """One of the committed files."""
    result: Result = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return result


def write(folder: Path = RESULTS) -> None:
    """cpu.md and cpu.svg beside ``folder``'s cpu.json; the table is printed too."""
    result = load(folder, "cpu")
    fidelity = load(RESULTS, "fidelity")
    text = markdown(result, fidelity)
    (folder / "cpu.md").write_text(text, "utf-8")
    print(text)
    plot(result, fidelity, folder / "cpu.svg")


def write_readme() -> None:
    """Put the block between the marks of README.md anew."""
    before, _, rest = README.read_text("utf-8").partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    assert mark, f"README.md has no {MARKS[0].strip()} … {MARKS[1].strip()}"
    block = readme(load(RESULTS, "cpu"), load(RESULTS, "tab"), load(RESULTS, "export"))
    README.write_text(f"{before}{MARKS[0]}{block}\n{MARKS[1]}{after}", "utf-8")


if __name__ == "__main__":
    write()
    write_readme()
