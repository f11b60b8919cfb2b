"""What reads the code that asks: torch.compile, torch.export or nothing but Python.

PyTorch's own questions, as torch 2.11 can be asked them, too: compiled, it takes `is_exporting` for true and can't answer the
one about autocast. Here they are asked while it compiles; the answer becomes a constant of what is compiled.
"""

import torch


@torch.compiler.assume_constant_result
def exports() -> bool:
    """Whether torch.export reads it."""
    return torch.compiler.is_exporting()


def compiles() -> bool:
    """Whether torch.compile reads it, and not for torch.export."""
    return torch.compiler.is_compiling() and not exports()


@torch.compiler.assume_constant_result
def has_autocast(device: str) -> bool:
    """Whether there is autocast for devices of the type."""
    return torch.amp.is_autocast_available(device)
