"""Print where a running server has its page, and a curl command for an embedding."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

from tokenizers import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the exported ONNX file")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--sentence", default="Attention is all you need.")
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(args.model.with_suffix(".tokenizer.json")))
    ids = tokenizer.encode(args.sentence).ids
    inputs = [
        {"name": name, "shape": [1, len(ids)], "datatype": "INT64", "data": data}
        for name, data in (("input_ids", ids), ("attention_mask", [1] * len(ids)))
    ]
    url = f"http://127.0.0.1:{args.port}/v2/models/{args.model.stem}/infer"
    body = json.dumps({"inputs": inputs})
    print(f"The attention of every head over a text: http://127.0.0.1:{args.port}/\n")
    print(f"The embedding of {args.sentence!r}, from another terminal:\n")
    print(
        textwrap.indent(
            f"curl -s {url} \\\n  -H 'Content-Type: application/json' -d '{body}'\n", "  "
        )
    )


if __name__ == "__main__":
    main()
