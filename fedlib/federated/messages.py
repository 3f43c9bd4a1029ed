"""What travels between server and clients: arrays, how large they are as bytes, and what may be wrong with them."""

from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto


class LiveArray(Array):
    """A Flower Array that is turned into bytes when it has to travel: in one process nobody reads them.

    It holds `values` itself, and `numpy()` gives them without a copy: whoever reads them must not change them in place.
    Flower's own serializes on being made, and parses on every look: three fifths of what a message costs in one process.
    """

    def __init__(self, values: np.ndarray):
        self.values = values
        self.dtype, self.shape, self.stype = str(values.dtype), tuple(values.shape), "numpy.ndarray"

    def numpy(self) -> np.ndarray:
        """The values."""
        return self.values

    @property
    def data(self) -> bytes:
        """The values in NumPy's format, as Flower's Array has them."""
        buffer = BytesIO()
        np.save(buffer, self.values, allow_pickle=False)
        return buffer.getvalue()


LiveArray.__qualname__ = Array.__qualname__  # Flower writes it into what it sends: the other side is to read its own Array


def record_of(arrays: dict[str, Array]) -> ArrayRecord:
    """A record of these very arrays; Flower's constructor would make bytes of each."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def live(state: dict[str, torch.Tensor]) -> ArrayRecord:
    """These very weights as a message carries them; on a GPU, a copy. Nobody may change them from then on."""
    return record_of({name: LiveArray(tensor.detach().cpu().numpy()) for name, tensor in state.items()})


def packed(state: dict[str, torch.Tensor]) -> ArrayRecord:
    """A copy of a model's weights, or other tensors by name, as a message carries them, in C order."""
    return record_of({name: LiveArray(_copied(tensor.detach())) for name, tensor in state.items()})


def _copied(tensor: torch.Tensor) -> np.ndarray:
    """A copy in C order; what comes from a GPU is one already."""
    return tensor.contiguous().cpu().numpy() if tensor.is_cuda else np.array(tensor.numpy(), order="C")


def cast(content: RecordDict, to: type[np.floating]) -> RecordDict:
    """The content with its floating-point arrays in another precision; counters stay."""

    def converted(array: Array) -> Array:
        return LiveArray(array.numpy().astype(to)) if np.issubdtype(np.dtype(array.dtype), np.floating) else array

    with np.errstate(over="ignore"):  # what is too large becomes infinite, and the server refuses that by name
        arrays = {
            key: record_of({name: converted(array) for name, array in record.items()})
            for key, record in content.array_records.items()
        }
    return RecordDict({**content, **arrays})


def fault_of(update: dict[str, Array], initial: dict[str, Array]) -> str:
    """What is wrong with an update: other names, shapes or types than the model's, or numbers that are not finite.

    Averaged, one number that is not finite would spoil every client. Empty when nothing is wrong.
    """
    if odd := sorted(set(update) ^ set(initial)):
        return f"missing or unknown weights, {', '.join(odd[:3])}; expected those of the model"
    for name, array in update.items():
        values, wanted = array.numpy(), initial[name]
        if (values.shape, str(values.dtype)) != (tuple(wanted.shape), wanted.dtype):
            return f"{name} is {values.dtype} {values.shape}, expected {wanted.dtype} {tuple(wanted.shape)}"
        if not np.isfinite(values).all():
            return f"{name} is not finite"
    return ""


_sizes: dict[tuple, int] = {}


def serialized_bytes(content: RecordDict) -> int:
    """Size of weights and metrics as they go over the wire (protobuf), without the run's settings: folders have long names.

    Measured once for each kind of content: to serialize every message just to count it would cost more than to deliver it.
    """
    counted = RecordDict({key: record for key, record in content.items() if not isinstance(record, ConfigRecord)})
    kind = tuple((key, *map(_kind, record.items())) for key, record in counted.items())
    if kind not in _sizes:
        _sizes[kind] = recorddict_to_proto(counted).ByteSize()
    return _sizes[kind]


def _kind(item: tuple) -> tuple:
    """What decides how many bytes an array or a metric takes; a whole number takes more the larger it is."""
    name, value = item
    if isinstance(value, Array):
        return name, value.dtype, tuple(value.shape)
    return name, type(value), value.bit_length() if isinstance(value, int) else 0
