"""Writes the small files beside it, as torch.save and SGLang's recorder would.

Python's own pickler writes them, with the names and calls that torch.save uses, so that no torch
is needed: python3 traces/tests/data/make.py
"""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

HERE = os.path.dirname(os.path.abspath(__file__))

torch = types.ModuleType("torch")
utils = types.ModuleType("torch._utils")


def _rebuild_tensor_v2(*arguments):
    raise NotImplementedError


_rebuild_tensor_v2.__module__ = "torch._utils"
utils._rebuild_tensor_v2 = _rebuild_tensor_v2
torch._utils = utils


class IntStorage:
    code = "i"


class LongStorage:
    code = "q"


for storage in (IntStorage, LongStorage):
    storage.__module__ = "torch"
    setattr(torch, storage.__name__, storage)
sys.modules["torch"] = torch
sys.modules["torch._utils"] = utils


class Stored:
    def __init__(self, kind, values):
        self.kind, self.values = kind, values


class Tensor:
    def __init__(self, storage, shape, offset=0):
        self.storage, self.shape, self.offset = storage, shape, offset

    def __reduce_ex__(self, protocol):
        strides, step = [], 1
        for extent in reversed(self.shape):
            strides.insert(0, step)
            step *= extent
        arguments = (self.storage, self.offset, tuple(self.shape), tuple(strides), False, OrderedDict())
        return (_rebuild_tensor_v2, arguments)


class Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = []

    def persistent_id(self, item):
        if not isinstance(item, Stored):
            return None
        if item not in self.storages:
            self.storages.append(item)
        return ("storage", item.kind, str(self.storages.index(item)), "cpu", len(item.values))


def save(name, value):
    data = io.BytesIO()
    pickler = Pickler(data)
    pickler.dump(value)
    with zipfile.ZipFile(os.path.join(HERE, name), "w", zipfile.ZIP_STORED) as archive:
        def add(path, contents):
            entry = zipfile.ZipInfo("archive/" + path, (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, contents)

        add("data.pkl", data.getvalue())
        add("byteorder", b"little")
        for index, stored in enumerate(pickler.storages):
            code = f"<{len(stored.values)}{stored.kind.code}"
            add(f"data/{index}", struct.pack(code, *stored.values))
        add("version", b"3\n")


# stat: 12 steps, 3 layers (the first is dense), 4 experts. Steps 0 to 4 are CUDA-graph capture,
# 10 and 11 the unused end of the ring buffer.
counts = []
for step in range(12):
    if step < 5:
        row = [32, 32, 0, 0]
    elif step < 10:
        row = [10 + step, 20 - step, 3, 7]
    else:
        row = [0, 0, 0, 0]
    counts += [0, 0, 0, 0] + row + row[::-1]
save(
    "sglang-stat.pt",
    {
        "rank": 0,
        "logical_count": Tensor(Stored(IntStorage, counts), [12, 3, 4]),
        "average_utilization_rate_over_window": None,
    },
)

# 2 layers, 6 physical experts of 4 logical ones.
mapping = Tensor(Stored(LongStorage, [0, 1, 2, 3, 0, 1, 3, 2, 1, 0, 0, 0]), [2, 6])
records = []
for step in range(3):
    row = [step + 1, 2, 3, 4, 5, 6]
    records.append(
        {
            "forward_pass_id": 7 - step,
            "rank": 3,
            "gatherer_key": "primary",
            "global_physical_count": Tensor(Stored(IntStorage, row + row), [2, 6]),
        }
    )
save("sglang-per-pass.pt", {"records": records, "last_physical_to_logical_map": mapping})

records = []
for step in range(2):
    tokens = 2 + step
    ids = []
    for layer in range(2):
        for token in range(tokens):
            ids += [token, token + 2, -1, -1]
    records.append(
        {
            "forward_pass_id": step,
            "rank": 3,
            "gatherer_key": "primary",
            "input_ids": list(range(tokens)),
            "positions": list(range(tokens)),
            "extend_seq_lens": None,
            "forward_mode": 2,
            "topk_ids_of_layer": Tensor(Stored(IntStorage, ids), [2, tokens, 4]),
            "misc_objects": [],
            "global_physical_count": Tensor(Stored(IntStorage, [0] * 12), [2, 6]),
        }
    )
save("sglang-per-token.pt", {"records": records, "last_physical_to_logical_map": mapping})


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/moeplan-was-here",))


save("evil.pt", {"logical_count": Evil()})
