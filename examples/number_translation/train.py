"""Train a translator from English number words to German and French ones, and export it.

Writes into a folder: translator.safetensors, the parameters; alignment.png, which source words each
character looked at; translator.onnx, one file that does the whole greedy decode. At the end the
translations of held-out numbers are compared with the right ones, and those of the ONNX file with
those of the model.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from dataset import Pairs, source_words, split, text
from tqdm import tqdm
from translator import Translator

import pyattn as pa

BATCH = 128


def train(
    translator: Translator, pairs: Pairs, steps: int, rate: float, rng: np.random.Generator
) -> float:
    """Change the parameters of ``translator``; return the mean loss of the last steps."""
    adam = pa.optim.Adam(rate=rate, max_norm=1.0)
    loss_and_gradients = pa.value_and_grad(lambda translator, batch: translator.loss(batch))
    batches = pairs.shuffled(min(BATCH, len(pairs)), rng)
    recent = math.nan
    progress = tqdm(range(steps), desc="training", unit="batch")
    for step in progress:
        adam.rate = rate * (1 + math.cos(math.pi * step / steps)) / 2
        loss, gradients = loss_and_gradients(translator, next(batches))
        adam.update(translator.parameters(), gradients)
        recent = float(loss) if step == 0 else 0.95 * recent + 0.05 * float(loss)
        progress.set_postfix(loss=f"{recent:.4f}")
    return recent


def translations(run: Any, pairs: Pairs, name: str) -> list[str]:
    """Return what ``run(source, lengths, language)`` makes of every source."""
    found: list[str] = []
    with tqdm(total=len(pairs), desc=name, unit="translation") as progress:
        for batch in pairs.in_order(BATCH):
            found += map(text, run(batch.source, batch.lengths, batch.language))
            progress.update(len(batch.lengths))
    return found


def plot_alignment(translator: Translator, number: int, path: Path) -> None:
    """Draw how strongly each character of the translations looked at each English word."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    pairs = Pairs.of([number])
    batch = pairs.batch(range(len(pairs)))
    result = translator(batch.source, batch.lengths, batch.language)
    figure, axes = pyplot.subplots(len(pairs), 1, figsize=(11, 6.5), layout="constrained")
    for row, axis in enumerate(axes):
        characters = text(result["tokens"][row])
        words = source_words(number)
        weights = result["alignment"][row, : len(characters), : len(words)]
        axis.imshow(weights.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(characters)), characters)
        axis.set_yticks(range(len(words)), words)
        axis.tick_params(length=0)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def export(translator: Translator, pairs: Pairs, path: Path) -> Any:
    """Write the ONNX file; return a function that translates with it."""
    batch = pairs.batch(range(4))
    inputs = {
        "source": pa.Input(batch.source, ("batch", "words")),
        "lengths": pa.Input(batch.lengths, ("batch",), at_most="words"),
        "language": pa.Input(batch.language, ("batch",)),
    }
    pa.export(translator, inputs, path)
    session = pa.ort.session(path)
    return lambda *arrays: session.run(["tokens"], dict(zip(inputs, arrays, strict=True)))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the files")
    parser.add_argument("--steps", type=int, default=800, help="batches of 128 to train on")
    parser.add_argument("--numbers", type=int, default=20_000, help="numbers to train on")
    parser.add_argument("--held-out", type=int, default=1000, help="numbers to test on")
    parser.add_argument("--hidden", type=int, default=128, help="the size of the states")
    parser.add_argument("--rate", type=float, default=3e-3, help="the first step size of Adam")
    parser.add_argument("--number", type=int, default=4_521, help="whose alignment to plot")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    training, held_out = (
        Pairs.of(part.tolist()) for part in split(args.numbers, args.held_out, rng)
    )
    translator = Translator(hidden=args.hidden, rng=rng)
    loss = train(translator, training, args.steps, args.rate, rng)
    pa.save(translator, args.folder / "translator.safetensors")
    plot_alignment(translator, args.number, args.folder / "alignment.png")

    run = export(translator, held_out, args.folder / "translator.onnx")
    eager = translations(lambda *batch: translator(*batch)["tokens"], held_out, "eager")
    exported = translations(run, held_out, "ONNX Runtime")
    right = sum(a == text(b) for a, b in zip(eager, held_out.targets, strict=True))
    same = sum(a == b for a, b in zip(eager, exported, strict=True))
    print(
        f"loss {loss:.4f}; {right} of {len(held_out)} translations of {args.held_out} held-out "
        f"numbers are right ({right / len(held_out):.2%}); {same} of {len(held_out)} are the same "
        f"in ONNX Runtime; files in {args.folder}"
    )


if __name__ == "__main__":
    main()
