"""The bench's figures as words: python tests/bench/cpu/report.py.

Makes results/cpu.md and cpu.svg out of cpu.json, fidelity.json, tab.json and drafts.json, the same of every other model
there are speeds of, and the block of README.md between MARKS out of the files QUOTED; tests/test_readme.py holds all to
the committed figures.
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
NATIVE, OURS, TWO = "native onnxruntime", "ours", "ours, two threads"
Q8, WLLAMA = "transformers.js q8", "wllama"
DEFAULT = "smollm2-135m"
"""The model whose figures have no name behind theirs."""
QUOTED = "cpu", "fidelity", "tab", "export"
"""The files that README.md quotes, in the order of `readme`'s parameters."""

Result = dict[str, Any]


def named(figures: str, model: str) -> str:
    """The name of ``model``'s file of ``figures``, without its ending."""
    return figures if model == DEFAULT else f"{figures}-{model}"


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


def peers(result: Result) -> list[str]:
    """The browser's other runtimes that took part; wllama is the last."""
    return [name for name in result["figures"]["decode"] if name.startswith((Q8, WLLAMA))]


def speed(result: Result, task: str, runtime: str, stop: int = -1) -> float:
    """Tokens per second of decoding."""
    return 1000 / median(result, task, runtime, "milliseconds", stop)


def markdown(result: Result, name: str, fidelity: Result | None, tab: Result | None, drafts: Result | None) -> str:
    """The whole report of the speeds in ``result``, and of what else was taken; ``name``.svg is its plot."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    load, figures, others = result["load"], result["figures"], peers(result)
    rounds = len(figures["decode"][OURS])
    lines = [
        f"# {result['model']} on the CPU",
        "",
        f"{result['machine']}, {result['date']}, {result['minutes']} minutes, one run with everybody interleaved; one "
        f"thread where nothing else is said. Load average {load['start']} at the start (before anything was opened), "
        f"{load['end']} at the end. {versions}.",
        "",
        f"Medians of {rounds} rounds; wllama's 518-token prompt {len(figures['prompt'][others[-1]])} rounds, native "
        f"onnxruntime against context {len(figures['context'][NATIVE])}. Native onnxruntime runs our graph in CPython "
        "at accuracy_level 4; transformers.js runs dynamic int8 of the same checkpoint on WASM; wllama runs the GGUF "
        "that the export is made from.",
        "",
        "| runtime | decode after 50 tokens, tokens/s | 518-token prompt, s | spread of rounds (decode; prompt) |",
        "|---|---|---|---|",
    ]
    for runtime in (NATIVE, OURS, TWO, *others):
        spread = "; ".join(
            f"{1000 / max(values):.1f}–{1000 / min(values):.1f}"
            if field == "milliseconds"
            else f"{min(values):.2f}–{max(values):.2f}"
            for task, field in (("decode", "milliseconds"), ("prompt", "seconds"))
            for values in [[points[0][field] for points in figures[task][runtime]]]
        )
        lines.append(
            f"| {runtime} | {speed(result, 'decode', runtime):.1f} | "
            f"{median(result, 'prompt', runtime, 'seconds'):.2f} | {spread} |"
        )
    lines += ["", "| ours, in ratios | measured |", "|---|---|"]
    lines += [f"| {words} | {value} |" for words, value in ratios(result).items()]
    lines += ["", "No kernel uses relaxed SIMD or an 8-bit dot product: every browser and CPU runs the same."]
    if tab:
        lines += ["", *visited(tab)]
    if drafts:
        lines += ["", *drafted(drafts)]
    if fidelity:
        lines += ["", *faithful(fidelity)]
    plotted = "Speed against context length, against peers" + (" and against perplexity" if fidelity else "")
    lines += ["", f"![{plotted}]({name}.svg)", ""]
    return "\n".join(lines)


def faithful(fidelity: Result) -> list[str]:
    """Who predicts what the checkpoint predicts."""
    return [
        f"Faithfulness on {fidelity['positions']:,} positions of a text that nothing was tuned on (heldout.txt), "
        f"against the checkpoint in float32, whose perplexity there is {fidelity['perplexity']:.2f}; ours "
        f"in Chromium {fidelity['chromium']}, the others natively (wllama was not asked):",
        "",
        "| runtime | same likeliest token | perplexity / float32 |",
        "|---|---|---|",
        *(f"| {name} | {each['likeliest']:.2%} | {each['ratio']:.4f} |" for name, each in fidelity["runtimes"].items()),
    ]


def visited(tab: Result) -> list[str]:
    """A visit with the model stored, and what the first one cost."""
    times = [statistics.median(tab[f"{name}_seconds"]) for name in ("ready", "first_token")]
    sizes = tab["tab_megabytes"] / tab["model_megabytes"], tab["rested_megabytes"] / tab["model_megabytes"]
    weights = tab["model_megabytes"]
    sizes = [tab[f"{name}_megabytes"] / weights for name in ("tab", "rested")]
    text = (
        f"A visit to the page with the model stored ({tab['runtime']}; medians of {len(tab['ready_seconds'])}, load "
        f"{tab['load_at_start']}): ready {times[0]:.2f} s after navigation, first token after {times[1]:.2f} s. The "
        f"tab takes {tab['tab_megabytes']:.0f} MB beyond an empty one when the answer ends, {sizes[0]:.2f} times the "
        f"weights' {weights:.1f} MB, and {tab['rested_megabytes']:.0f} MB ({sizes[1]:.2f} times) once it has rested. "
        f"The first visit was sent {tab['first_visit_sent_bytes'] / 1e6:.1f} MB, later ones "
        f"{tab['later_visits_sent_bytes']:,} bytes."
    )
    return [text]


def drafted(drafts: Result) -> list[str]:
    """What prompt lookup brings."""
    found = drafts["tokens_per_second"]
    return [
        "Prompt lookup in the page, greedy answers (the same ones with and without), medians of "
        f"{min(len(each['without']) for each in found.values())} rounds in turn:",
        "",
        "| an answer that | tokens/s with drafts | without | ratio |",
        "|---|---|---|---|",
        *(
            f"| {name} | {statistics.median(each['with drafts']):.1f} | {statistics.median(each['without']):.1f} "
            f"| {drafts['ratio'][name]:.2f} |"
            for name, each in found.items()
        ),
    ]


def ratios(result: Result) -> dict[str, str]:
    """What the figures say, relative to peers and to each other."""
    ours, prompt = speed(result, "decode", OURS), median(result, "prompt", OURS, "seconds")
    others = peers(result)
    prompts = {name: median(result, "prompt", name, "seconds") for name in (NATIVE, TWO, *others)}
    speeds = {name: speed(result, "decode", name) for name in prompts}
    best, first = max(others, key=lambda name: speeds[name]), min(others, key=lambda name: prompts[name])
    turn = median(result, "second turn", OURS, "seconds") / median(result, "cold turn", OURS, "seconds")
    found = {
        f"decode / best browser peer ({best})": f"{ours / speeds[best]:.2f}",
        "decode / wllama": f"{ours / speeds[others[-1]]:.2f}",
        "decode / native onnxruntime": f"{ours / speeds[NATIVE]:.2f}",
        f"prompt / best browser peer ({first}), seconds": f"{prompt / prompts[first]:.3f}",
        "prompt / native onnxruntime, seconds": f"{prompt / prompts[NATIVE]:.2f}",
        "second turn (40 new tokens after 1,000) / cold, seconds": f"{turn:.3f}",
        "decode at 4,096 tokens / at 100": f"{speed(result, 'context', OURS) / speed(result, 'context', OURS, 0):.2f}",
        "two threads / one, decode": f"{speeds[TWO] / ours:.2f}",
        "two threads / one, prompt": f"{prompt / prompts[TWO]:.2f}",
    }
    if "peak" in result:
        peaks = [statistics.median(result["peak"][name]) for name in ("one thread", "two threads")]
        least, work = result["products"] / peaks[0] / 1e9, result["products"] / 1e9
        found |= {
            "a loop of i32x4.dot_i16x8_s alone (peak.c), two threads / one": f"{peaks[1] / peaks[0]:.2f}",
            f"prompt, as that loop would do it ({work:.1f} G products at {peaks[0]:.1f} G/s) / reached": (
                f"{least:.2f} s / {prompt:.2f} s = {least / prompt:.2f}"
            ),
            f"prompt, as that loop would do it / best browser peer ({first}), seconds": f"{least / prompts[first]:.3f}",
        }
    return found


def readme(result: Result, fidelity: Result, tab: Result, export: Result) -> str:
    """What README.md says of speed, faithfulness, memory and the export."""
    npm = result["versions"]
    others = peers(result)
    names = [OURS, *others, NATIVE]
    speeds = {name: speed(result, "decode", name) for name in names}
    prompts = {name: median(result, "prompt", name, "seconds") for name in names}
    turns = [median(result, task, OURS, "seconds") for task in ("second turn", "cold turn")]
    long = [speed(result, "context", OURS, stop) for stop in (-1, 0)]
    faster = [f"{speeds[name]:.1f} ({speeds[OURS] / speeds[name]:.1f}× slower)" for name in others]
    sooner = [f"{prompts[name]:.1f} s ({prompts[name] / prompts[OURS]:.1f}× longer)" for name in others]
    two = speed(result, "decode", TWO) / speeds[OURS]
    asked = [fidelity["runtimes"].get(name) for name in names]
    likeliest = [f"{each['likeliest']:.2%}" if each else "not asked" for each in asked]
    perplexity = [f"{each['ratio']:.4f}" if each else "not asked" for each in asked]
    visit = statistics.median(tab["first_token_seconds"])
    lines = [
        f"{result['model']} on one thread of a {result['machine']}, everybody interleaved in one run, medians of "
        f"{len(result['figures']['decode'][OURS])} rounds:",
        "",
        f"| | Handbill in Chromium | transformers.js {npm['@huggingface/transformers']}, int8 "
        f"| wllama {npm['@wllama/wllama']}, the same int4 weights "
        f"| native onnxruntime {npm['onnxruntime']}, our graph |",
        "|---|---|---|---|---|",
        f"| tokens/s after 50 tokens | {speeds[OURS]:.1f} | {' | '.join(faster)} | {speeds[NATIVE]:.1f} |",
        f"| first token of a 518-token prompt | {prompts[OURS]:.1f} s | {' | '.join(sooner)} "
        f"| {prompts[NATIVE]:.1f} s |",
        f"| same likeliest token as in float32 | {' | '.join(likeliest)} |",
        f"| perplexity / float32's | {' | '.join(perplexity)} |",
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


def plot(result: Result, fidelity: Result | None, path: Path) -> None:
    """Speed against context length, bars against peers, and speed against perplexity with a model's bytes as area."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "handbill"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    figure, ((left, faithful), (middle, right)) = pyplot.subplots(2, 2, figsize=(9, 7), layout="constrained")
    others = peers(result)
    colours = {OURS: "#0b6e4f", NATIVE: "#8a8f98"}
    colours |= dict(zip(others, ["#c58b2a", "#b4553a"][-len(others) :], strict=True))
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
    for name, each in (fidelity["runtimes"] if fidelity else {}).items():
        if name in colours:
            place = (each["ratio"], speed(result, "decode", name))
            faithful.scatter(*place, s=each["bytes"] / 4e5, color=colours[name], alpha=0.6)
            faithful.annotate(f"{name}, {each['bytes'] / 1e6:.0f} MB", place, ha="center", va="bottom", fontsize=8)
    faithful.set(title="Decode against perplexity", xlabel="perplexity / float32", ylabel="tokens/s", ylim=(0, None))
    faithful.margins(x=0.3, y=0.3)
    faithful.set_visible(fidelity is not None)
    for axes in (left, faithful, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def load(folder: Path, name: str) -> Result:
    """One of the committed files."""
    result: Result = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return result


def taken(figures: str, name: str) -> Result | None:
    """The ``figures`` of the model whose speeds are called ``name``; None where they were not taken."""
    path = RESULTS / f"{name.replace('cpu', figures, 1)}.json"
    return load(RESULTS, path.stem) if path.is_file() else None


def reported(name: str, folder: Path = RESULTS) -> str:
    """The words of ``folder``'s figures ``name``."""
    return markdown(load(folder, name), name, *(taken(figures, name) for figures in ("fidelity", "tab", "drafts")))


def write(folder: Path = RESULTS, name: str = "cpu") -> None:
    """``name``.md and ``name``.svg beside ``folder``'s ``name``.json; the table is printed too."""
    text = reported(name, folder)
    (folder / f"{name}.md").write_text(text, "utf-8")
    print(text)
    plot(load(folder, name), taken("fidelity", name), folder / f"{name}.svg")


def write_readme() -> None:
    """Put the block between the marks of README.md anew."""
    before, _, rest = README.read_text("utf-8").partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    assert mark, f"README.md has no {MARKS[0].strip()} … {MARKS[1].strip()}"
    block = readme(*(load(RESULTS, name) for name in QUOTED))
    README.write_text(f"{before}{MARKS[0]}{block}\n{MARKS[1]}{after}", "utf-8")


if __name__ == "__main__":
    for path in sorted(RESULTS.glob("cpu*.json")):
        write(name=path.stem)
    write_readme()
