"""Measures a trained student: accuracy, accuracy by class, and the confusion matrix as table, JSON and picture."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_student.inference.data import count_confusions, in_outputs, load_samples
from edge_student.inference.runtimes import BATCH, Predictor, open_exported, predictor_of
from edge_student.inference.student import load_student
from edge_student.settings.inference import EvaluateConfig
from edgekd.cli.progress import Progress
from edgekd.data.rows import chunks
from edgekd.files import expanded, replace_atomically, write_json

_MOST_ROWS = 25
"""Classes in the printed table; with more, those with the lowest accuracy."""


def evaluate(config: EvaluateConfig) -> int:
    """Print the accuracy and write evaluation.json and confusion.png. Returns the exit status."""
    student = load_student(expanded(config.student), config.model)
    predict = predictor_of(student) if config.exported is None else open_exported(expanded(config.exported))
    dataset = in_outputs(load_samples(config.data, student), student)
    num_classes = student.card.num_classes
    names = student.class_names or tuple(map(str, range(num_classes)))
    counts = _count(predict, dataset.inputs, dataset.labels, num_classes)
    result = describe(counts, names)
    out = expanded(config.out or config.student.parent)
    out.mkdir(parents=True, exist_ok=True)
    identity = {"student": str(config.student), "exported": str(config.exported) if config.exported else None, "data": config.data}
    write_json(out / "evaluation.json", {**identity, **result})
    replace_atomically(out / "confusion.png", lambda fresh: _draw(counts, names, fresh))
    for line in table(result):
        print(line)
    print(f"accuracy {result['accuracy']:.4f} of {result['num_samples']} samples of {config.data}")
    print(f"Details: {out / 'evaluation.json'}. Picture: {out / 'confusion.png'}.")
    return 0


def _count(predict: Predictor, inputs: Any, labels: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.int64]:
    counts = np.zeros((num_classes, num_classes), np.int64)
    with Progress("evaluating", len(labels)) as progress:
        for part in chunks(inputs, most_rows=BATCH):
            predicted = predict(inputs[part]).argmax(axis=1)
            counts += count_confusions(labels[part], predicted, num_classes)
            progress.advance(len(predicted))
    return counts


def describe(counts: npt.NDArray[np.int64], names: tuple[str, ...]) -> dict[str, Any]:
    """Return accuracy, values by class and the confusion matrix, as plain values.

    Of a class: samples, recall (share of its samples that are right), precision (share of its predictions that are right), and the
    class with which it is confused most. A share of nothing is null.
    """
    by_class = []
    for number, name in enumerate(names):
        wrong = counts[number].copy()
        wrong[number] = 0
        most = int(wrong.argmax()) if wrong.any() else None
        by_class.append(
            {
                "name": name,
                "samples": int(counts[number].sum()),
                "recall": _share(counts[number, number], counts[number].sum()),
                "precision": _share(counts[number, number], counts[:, number].sum()),
                "most_confused_with": None if most is None else names[most],
                "times": 0 if most is None else int(wrong[most]),
            }
        )
    return {
        "accuracy": _share(int(np.trace(counts)), int(counts.sum())),
        "num_samples": int(counts.sum()),
        "classes": by_class,
        "confusion": counts.tolist(),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return the lines of the table by class."""
    rows = [row for row in result["classes"] if row["samples"]]
    shown = sorted(rows, key=lambda row: row["recall"])[:_MOST_ROWS] if len(rows) > _MOST_ROWS else rows
    width = max([len("class"), *(min(len(row["name"]), 28) for row in shown)])
    lines = [f"{'class':{width}}  samples  recall  precision  most confused with"]
    for row in shown:
        confused = f"{row['most_confused_with'][:28]} ({row['times']})" if row["most_confused_with"] is not None else "-"
        lines.append(
            f"{row['name'][:28]:{width}}  {row['samples']:7}  {_text(row['recall'])}  {_text(row['precision']):>9}  {confused}"
        )
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown)} classes with a higher recall")
    return lines


def _text(share: float | None) -> str:
    return "     -" if share is None else f"{share:6.3f}"


def _share(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def _draw(counts: npt.NDArray[np.int64], names: tuple[str, ...], path: Path) -> None:
    """Draw the confusion matrix, each row divided by its sum."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = min(14.0, 3.0 + 0.35 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    few = len(names) <= 40
    axes.set(
        xlabel="predicted class", ylabel="class", xticks=range(len(names)) if few else [], yticks=range(len(names)) if few else []
    )
    if few:
        axes.set_xticklabels([name[:20] for name in names], rotation=90)
        axes.set_yticklabels([name[:20] for name in names])
    if len(names) <= 20:
        for row, column in np.ndindex(counts.shape):
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, label="share of the class")
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
