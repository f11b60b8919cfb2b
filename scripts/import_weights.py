"""Turns published weights into octnet's: the authors' MXNet files, or the PyTorch port's, as .safetensors with vanilla names.

FILE is a `.params` file, a `.tar` that holds one (facebookresearch/OctConv), or a `.pth` (d-li14/octconv.pytorch, α = 0.5).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octnet.checkpoint import save_weights
from octnet.network import build_network
from octnet.options import UserError
from octnet.published import count_classes, put_weights, read_published


def main() -> int:
    """Parses the command line and converts the file; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
The number of classes is the file's. What the network takes beside it goes into --kwargs, as in train.py's model.kwargs.

example: python scripts/import_weights.py mobilenet_v1_100_alpha-0.5.params \\
             --model oct_paper_mobilenetv1_100 --alpha 0.5 --output mobilenetv1.safetensors
         python eval.py checkpoint=mobilenetv1.safetensors \\
             model.name=oct_paper_mobilenetv1_100 model.alpha=0.5 data=imagenet data.root=<dir>""",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--model", required=True, metavar="NAME", help="timm name, such as oct_paper_resnet50")
    parser.add_argument("--alpha", type=float, required=True, metavar="A", help="the file's; 0 for a vanilla network")
    parser.add_argument("--kwargs", nargs="*", default=[], metavar="K=V", help="such as layers=[1,1,1,1]")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help=".safetensors; replaced if it exists")
    args = parser.parse_args()
    try:
        check_output(args.output)
        print(convert(args.file, args.model, args.alpha, keywords(args.kwargs), args.output))
    except UserError as error:
        print(f"import_weights.py: {error}", file=sys.stderr)
        return 2
    return 0


def convert(file: Path, name: str, alpha: float, kwargs: dict[str, Any], output: Path) -> str:
    """Reads, checks and writes; returns the line that says what. Raises UserError."""
    tensors = read_published(file)
    classes = count_classes(tensors, file)
    model = build_network(name, alpha, kwargs, classes)
    put_weights(model, tensors, file)
    save_weights(model, output)
    types = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
    params = sum(p.numel() for p in model.parameters())
    return f"{output}: {name}, α = {alpha:g}, {classes} classes, {params:,} parameters from {len(tensors)} tensors ({types})"


def check_output(path: Path) -> None:
    """Whether it can be written, and read again. Raises UserError."""
    if path.suffix != ".safetensors":
        raise UserError(f"--output {path}: give a name that ends in .safetensors")
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; give a file in it")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}")


def keywords(texts: list[str]) -> dict[str, Any]:
    """What `layers=[1,1,1,1] width=0.5` says. Raises UserError."""
    for text in texts:
        if "=" not in text:
            raise UserError(f"--kwargs {text}: write key=value")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist(texts))
    except OmegaConfBaseException as error:
        raise UserError(f"--kwargs {' '.join(texts)}: {str(error).splitlines()[0]}") from error
    return parsed


if __name__ == "__main__":
    sys.exit(main())
