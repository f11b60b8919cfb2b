"""One thread: the networks of the tests are small, and several threads wait for each other on a busy machine."""

import torch

torch.set_num_threads(1)
