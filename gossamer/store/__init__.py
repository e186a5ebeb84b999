"""Files: the container ``.gsm``, networks' weights, atomic writing."""

from gossamer.store.container import Container, Record, read_container
from gossamer.store.safetensors_file import dense_file_bytes, write_safetensors
from gossamer.store.weights import read_weights
from gossamer.store.writer import write_container

__all__ = [
    "Container",
    "Record",
    "dense_file_bytes",
    "read_container",
    "read_weights",
    "write_container",
    "write_safetensors",
]
