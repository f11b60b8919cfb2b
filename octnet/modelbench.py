"""The model benchmark: octave networks against timm's vanilla ones, interleaved in one process: time, and memory for backward.

realised = MACs ratio / time ratio, both to the vanilla network: 1 where all of the saving on paper is one on the clock.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from octnet.batch import DTYPES
from octnet.complexity import check_model
from octnet.fold import fold_batch_norms
from octnet.network import build_network
from octnet.octave import Octave
from octnet.options import UserError
from octnet.run import provenance
from octnet.times import how_run, read_times

CLASSES = 1000
COMPILES = 128  # networks and modes of one process; PyTorch would run eager after 8, silently


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `benchmark.py model`."""
    add = parser.add_argument
    add("--models", nargs="+", default=["oct_resnet50"], metavar="NAME", help="octave networks (default: oct_resnet50)")
    add("--alphas", nargs="+", type=float, default=[0.125, 0.25, 0.5, 0.75], metavar="A", help="default: %(default)s")
    add("--modes", nargs="+", default=["inference", "train"], choices=("inference", "train"), help="default: both")
    add("--dtype", default="float32", choices=tuple(DTYPES), help="float32, or autocast to another (default: float32)")
    add("--batch", type=int, default=8, metavar="N", help="images (default: %(default)s)")
    add("--image-size-px", type=int, default=224, metavar="S", help="default: %(default)s")
    add("--eager", action="store_true", help="without torch.compile")
    add("--cuda-graphs", action="store_true", help="compiled, and replayed as CUDA graphs: for small batches on a GPU")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--rounds", type=int, default=9, metavar="N", help="each times every network once (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write the records to FILE, added to those in it")


@dataclass
class Case:
    """A network that is measured: `alpha` 0 is the vanilla one."""

    model: str
    alpha: float
    network: nn.Module
    macs: int
    step: Callable[[], Any]
    milliseconds: list[float]


def run_model_benchmark(args: argparse.Namespace) -> None:
    """Measures each network in each mode and prints a table. Raises UserError: networks, α, options."""
    for option in ("batch", "image_size_px", "rounds"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)}: must be 1 or more")
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent}")
    for name in args.models:
        if not name.startswith("oct_"):
            raise UserError(f"--models {name}: octave networks begin with oct_: oct_{name}")
    devices = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
    if args.device.partition(":")[0] not in devices:
        raise UserError(f"--device {args.device}: there is {' and '.join(devices)}")
    if args.cuda_graphs and (args.eager or not args.device.startswith("cuda")):
        raise UserError("--cuda-graphs: of compiled networks on a GPU only: without --eager, with --device cuda")
    known = read_times(args.json) if args.json is not None and args.json.is_file() else []
    macs = {(name, a): _macs(name, a, args.image_size_px) for name in args.models for a in [0.0, *args.alphas]}
    torch._dynamo.config.recompile_limit = COMPILES
    keep_freed_memory()
    for name in args.models:
        for mode in args.modes:
            records = measure(name, mode, macs, args)
            print_records(records)
            known += records
            if args.json is not None:  # after each, so that nothing is lost
                args.json.write_text(json.dumps(known, indent=1) + "\n")


def keep_freed_memory() -> None:
    """Keeps freed memory in the process (glibc; jemalloc and tcmalloc do), as a GPU's allocator does.

    Without it every map of every step comes from the system anew, page by page: a tenth of the time on a CPU, on both sides.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def _macs(name: str, alpha: float, image_size_px: int) -> int:
    return check_model(name, alpha, {}, CLASSES, image_size_px).macs


def measure(name: str, mode: str, macs: dict[tuple[str, float], int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A record for each α of one network, the vanilla one (α = 0) first."""
    torch._dynamo.reset()
    device = torch.device(args.device)
    x = torch.randn(args.batch, 3, args.image_size_px, args.image_size_px, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    cases = [open_case(name, a, mode, macs[name, a], x, args) for a in dict.fromkeys([0.0, *args.alphas])]
    memory = [memory_of(case, x, args) if mode == "train" else {} for case in cases]
    with torch._inductor.config.patch(freezing=mode == "inference"):  # kernels laid out once
        for case in cases:
            for _ in range(3):  # compiles, and lets the library choose its kernels
                case.step()
    for _ in range(args.rounds):
        for case in cases:
            _synchronize(device)
            start = time.perf_counter()
            case.step()
            _synchronize(device)
            case.milliseconds.append((time.perf_counter() - start) * 1e3)
    where = provenance(device, 1)
    made = {"device": where["device"], "threads": where["threads"], "versions": where["versions"]}
    return [_record(case, cases[0], mode, kept, args) | made for case, kept in zip(cases, memory, strict=True)]


def open_case(name: str, alpha: float, mode: str, macs: int, x: Tensor, args: argparse.Namespace) -> Case:
    """The network on the device in the form that is fastest for it, and one call or training step of it."""
    torch.manual_seed(0)
    network = build_network(name, alpha, {}, CLASSES).to(x.device).to(memory_format=torch.channels_last)
    network.train(mode == "train")
    if mode == "inference":
        fold_batch_norms(network).to(memory_format=torch.channels_last)
        if x.is_cuda:  # weights are cast once, not in every call; on a CPU freezing does that
            network.to(DTYPES[args.dtype])
    if not args.eager:
        network.compile(mode="reduce-overhead" if args.cuda_graphs else None)
    target = torch.zeros(args.batch, dtype=torch.int64, device=x.device)

    def infer() -> Tensor:
        with torch.no_grad(), precision(args, x):
            logits: Tensor = network(x)
        return logits

    def train() -> None:
        network.zero_grad()
        with precision(args, x):
            loss = F.cross_entropy(network(x).float(), target)
        loss.backward()

    return Case(name, alpha, network, macs, train if mode == "train" else infer, [])


def precision(args: argparse.Namespace, x: Tensor) -> AbstractContextManager[None]:
    """Autocast to --dtype."""
    return torch.autocast(x.device.type, DTYPES[args.dtype], enabled=args.dtype != "float32")


def memory_of(case: Case, x: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """What a training step's forward keeps for its backward, per image, and the least that it could; on a GPU the peak."""
    case.step()  # compiled before it is measured
    own = {p.untyped_storage().data_ptr() for p in case.network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision(args, x):
        output = case.network(x)
    del output
    bound = sum(part.numel() * part.element_size() for part in _maps(case.network, x, args)) / len(x)
    memory = {"saved_mb": sum(kept.values()) / len(x) / 1e6, "bound_mb": bound / 1e6}
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats(x.device)
        case.step()
        memory["peak_mb"] = torch.cuda.max_memory_allocated(x.device) / 1e6
    return memory


def _maps(network: nn.Module, x: Tensor, args: argparse.Namespace) -> Iterator[Tensor]:
    """The maps that a backward pass can't do without, each once: inputs of convolutions, norms, pools and linear layers."""
    maps: dict[int, Tensor] = {}  # held, so that no storage is used twice

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for part in inputs[0].parts if isinstance(inputs[0], Octave) else [inputs[0]]:
            maps[part.untyped_storage().data_ptr()] = part

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.Linear)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with precision(args, x):
            network.forward(x)  # eager: `network(x)` may be compiled
    finally:
        for handle in handles:
            handle.remove()
    yield from maps.values()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _record(case: Case, vanilla: Case, mode: str, memory: dict[str, float], args: argparse.Namespace) -> dict[str, Any]:
    """One row; ratios are medians of the rounds' own, so that a machine that slows down slows both sides."""
    ratios = [a / b for a, b in zip(case.milliseconds, vanilla.milliseconds, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    time_ratio, macs_ratio = median(ratios), case.macs / vanilla.macs
    return {
        "model": case.model,
        "alpha": case.alpha,
        "mode": mode,
        "compiled": not args.eager,
        "cuda_graphs": args.cuda_graphs,
        "dtype": args.dtype,
        "batch": args.batch,
        "image_size_px": args.image_size_px,
        "rounds": args.rounds,
        "time_ms": median(case.milliseconds),
        "time_ratio": time_ratio,
        "time_ratio_quartiles": [low, high],
        "macs_ratio": macs_ratio,
        "realised": macs_ratio / time_ratio,
        **memory,
    }


def print_records(records: list[dict[str, Any]]) -> None:
    """Prints a table of one network in one mode."""
    vanilla = records[0]
    facts = (
        vanilla["mode"],
        how_run(vanilla),
        vanilla["dtype"],
        f"batch {vanilla['batch']}",
        f"{vanilla['image_size_px']} px",
    )
    memory = [key for key in ("saved_mb", "bound_mb", "peak_mb") if key in vanilla]
    shown_mb = [key for key in memory if key != "bound_mb"]
    table = Table(box=None, pad_edge=False)
    ratios = [f"{key[:-3]} ratio" for key in memory]
    for column in (
        "α",
        "ms",
        "time ratio",
        "±",
        "MACs ratio",
        "realised",
        *(f"{key[:-3]} MB" for key in shown_mb),
        *ratios,
    ):
        table.add_column(column, justify="right")
    for row in records:
        low, high = row["time_ratio_quartiles"]
        table.add_row(
            f"{row['alpha']:g}",
            f"{row['time_ms']:.1f}",
            f"{row['time_ratio']:.3f}",
            f"{(high - low) / 2:.3f}",
            f"{row['macs_ratio']:.3f}",
            f"{row['realised']:.2f}",
            *(f"{row[key]:.1f}" for key in shown_mb),
            *(f"{row[key] / vanilla[key]:.3f}" for key in memory),
        )
    console = Console()
    console.print(f"{vanilla['model']}: {', '.join(facts)}; {vanilla['device']}", highlight=False, soft_wrap=True)
    console.print(table)
    console.print("±: half of the interquartile range" + ("; saved: for backward, an image" if memory else "") + "\n")
