"""One thread: the networks of the tests are small, and several threads wait for each other on a busy machine."""

import pytest
import torch
import torch.nn.functional as F

torch.set_num_threads(1)


@pytest.fixture
def no_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """For counts and shapes, which don't depend on it: on the meta device it takes most of the time."""
    monkeypatch.setattr(F, "batch_norm", lambda x, *_: x)


@pytest.fixture
def no_try_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that run the network themselves."""
    monkeypatch.setattr("octnet.convert._try_out", lambda *_: None)
