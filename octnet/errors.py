"""What octave convolution refuses."""


class OctaveError(ValueError):
    """What octave convolution can't mean, with the reason."""


class OddSizeError(OctaveError):
    """A map of odd size that would have to be halved."""
