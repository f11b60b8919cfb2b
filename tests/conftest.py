"""Few threads: the tests run small networks, side by side with whatever else the machine does."""

import torch

torch.set_num_threads(2)
