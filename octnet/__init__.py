"""octnet: Octave Convolution networks, their training and their accuracy-versus-cost curves.

Importing it registers the networks with timm: `timm.create_model("oct_resnet50", alpha=0.25)`.
"""

from octnet import densenet as densenet
from octnet import mobilenet as mobilenet
from octnet import preact as preact
from octnet import resnet as resnet
from octnet import resnet152 as resnet152
from octnet.conv import OctConv2d
from octnet.convert import octavize
from octnet.errors import OctaveError
from octnet.fold import fold_batch_norms
from octnet.octave import Octave
from octnet.published import load_published_weights

__all__ = ["OctConv2d", "Octave", "OctaveError", "fold_batch_norms", "load_published_weights", "octavize"]
