"""The errors of `shoal.blocks`: each message is one sentence for the user; knows nothing of the network.

BlocksError
├── UnknownModel         no such directory or hub model, or no right to it
├── UnsupportedFamily    the config names an architecture that is not served
├── UnsafeCheckpoint     pickled weights, remote code, a path that leaves the checkpoint
├── CheckpointError      damaged, incomplete, or not the revision that was asked for
│   └── StoredOtherwise  the weights are quantized or packed in a way that is not read
├── NoSpace              the disk cannot hold the files that are needed
├── NoMemory             the device or the host has too little memory for what was asked
├── QuantizationError    unknown kind, or a module that cannot be quantized so
├── UnsupportedDevice    a device that Shoal does not compute on, or that this machine lacks
└── PromptTooLong        more tokens than the model's context
"""


class BlocksError(Exception):
    """Base of all errors that reading, placing or running blocks raises on purpose."""


class UnknownModel(BlocksError):
    """There is no such model, or it is not open to this user."""


class UnsupportedFamily(BlocksError):
    """The checkpoint's architecture is not one that Shoal serves."""


class UnsafeCheckpoint(BlocksError):
    """Reading the checkpoint would run code or leave its directory."""


class CheckpointError(BlocksError):
    """The checkpoint is damaged, incomplete, or of another revision."""


class StoredOtherwise(CheckpointError):
    """The weights are stored in a way that is not read: `how`, as a few words name it."""

    def __init__(self, how: object) -> None:
        super().__init__(
            f"The checkpoint's weights are stored as {how}, which is not read: choose the model's unquantized "
            "checkpoint, and let the peer quantize it."
        )


class NoSpace(BlocksError):
    """The disk has no room for the files."""


class NoMemory(BlocksError):
    """The device or the host has too little memory for what was asked."""


class QuantizationError(BlocksError):
    """The quantization is unknown or cannot be applied."""


class UnsupportedDevice(BlocksError):
    """Shoal does not compute on such a device, or this machine has none."""


class PromptTooLong(BlocksError):
    """The prompt and the new tokens exceed the model's context."""
