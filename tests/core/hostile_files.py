"""Weights files made to do harm, each with a name: what the readers must refuse, quickly and in few words.

``CORPUS`` maps a name to a function that writes the file into a folder of its own. Everything is built
from fixed numbers, so a name always stands for the same bytes. ``SAMPLE`` names a part that has every attack,
and every payload in one of the files that may hold it.
"""

import functools
import io
import json
import os
import pickle
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from hostile_pickles import BOMBS, COMMAND, PAYLOADS, Call, Raw, again, doubled, name, ops, program
from published_files import write_nvidia, write_tensorflow

from styleclip_core import save_generator
from styleclip_core.models.checkpoints import export_rosinality
from styleclip_core.models.encoder import Encoder, EncoderConfig, save_encoder
from styleclip_core.models.mapper import Mapper, MapperConfig, save_mapper
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig

TINY = {"resolution": 8, "z_dim": 4, "w_dim": 4, "mapping_layers": 2, "channel_base": 64, "channel_max": 8}


# ---- files as they should be ----------------------------------------------------------------------------


class _Holder(torch.nn.Module):
    """A module of given parameters, so that TorchScript writes an archive of their names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _holder(state):
    root = _Holder()
    for full, tensor in state.items():
        *path, leaf = full.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, _Holder())
            module = module._modules[part]
        module.register_parameter(leaf, torch.nn.Parameter(tensor.float(), requires_grad=False))
    return root


def _saved(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


@functools.cache
def valid_files():
    """Return small valid files of every kind: name -> content, and the loader that reads it."""
    torch.manual_seed(5)
    generator = Generator(GeneratorConfig(**TINY)).eval()
    mapper = Mapper(MapperConfig("levels", ("course", "fine"), w_dim=8))
    encoder = Encoder(EncoderConfig(16, 4, 4, widths=(4, 4, 4, 4), hidden=8)).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP

        clip = CLIP(8, 32, 1, 64, 16, 77, 50, 64, 1, 1).state_dict()
        root = Path(folder)
        state, config = generator.state_dict(), generator.config
        write_nvidia(root / "nvidia", state, config, canary=root / "canary", wrapped=False)
        write_nvidia(root / "nvidia 2", state, config, canary=root / "canary", wrapped=False, protocol=2)
        write_tensorflow(root / "tensorflow", state, config)
        export_rosinality(generator, root / "rosinality")
        save_generator(generator, root / "safe generator")
        save_mapper(mapper, root / "safe mapper")
        save_encoder(encoder, root / "safe encoder")
        torch.jit.save(torch.jit.script(_holder(clip)), root / "torchscript")
        rosinality = torch.load(root / "rosinality", weights_only=True)
        safetensors.torch.save_file(clip, root / "safe clip")
        files = {path.name: path.read_bytes() for path in root.iterdir()}
    files["rosinality legacy"] = _saved(rosinality, _use_new_zipfile_serialization=False)
    files["mapper"] = _saved({"state_dict": {f"mapper.{k}": v for k, v in mapper.state_dict().items()}})
    files["clip"] = _saved(clip)
    loaders = {"mapper": "mapper", "encoder": "encoder", "clip": "clip", "torchscript": "clip"}
    return {name: (files[name], loaders.get(name.split()[-1], "generator")) for name in sorted(files)}


# ---- containers -------------------------------------------------------------------------------------------


def torch_zip(content, storages=None, *, compression=zipfile.ZIP_STORED, extra=(), folder="archive"):
    """Return a zip file as torch writes it around a pickle."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", compression) as archive:
        warnings.simplefilter("ignore")  # entries of one name are wanted here
        entries = [("data.pkl", content), ("byteorder", b"little"), ("version", b"3\n")]
        entries += [(f"data/{key}", data) for key, data in (storages or {}).items()]
        for entry, data in entries:
            archive.writestr(zipfile.ZipInfo(f"{folder}/{entry}"), data, compression)
        for entry, data in extra:
            archive.writestr(zipfile.ZipInfo(entry), data, compression)
    return stream.getvalue()


def legacy(content, keys=(), storages=b""):
    """Return a file of torch's format before zip files."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    return head + content + pickle.dumps(list(keys), 2) + storages


def scripted(content):
    """Return a TorchScript archive whose code would run something."""
    code = f"import os\nos.system('{COMMAND}')\ndef forward(self):\n  return 0\n".encode()
    extra = [
        ("archive/constants.pkl", program(())), ("archive/code/__torch__.py", code),
        ("archive/code/__torch__.py.debug_pkl", program(PAYLOADS["os.system"])),
        ("archive/extra/x.py", code), ("archive/.data/serialization_id", b"0"),
    ]  # fmt: skip
    return torch_zip(content, extra=extra)


def _nested(value, depth):
    """Return a pickle whose storage is a file whose storage is a file, and so on."""
    for _ in range(depth):
        inside = legacy(program(value))
        value = Call("torch.storage", "_load_from_bytes", inside)
    return program({"g_ema": value})


_WRAPPERS = {
    "plain": program,
    "in a zip": lambda value: torch_zip(program({"g_ema": value})),
    "legacy": lambda value: legacy(program({"g_ema": value})),
    "nested": lambda value: _nested(value, 1),
    "scripted": lambda value: scripted(program(value)),
    "as a module": lambda value: program({"G_ema": Call(
        "torch_utils.persistence", "_reconstruct_persistent_obj",
        {"class_name": "Generator", "state": {"_modules": {"synthesis": value}, "hook": value}},
    )}),
}  # fmt: skip


# ---- tensors ------------------------------------------------------------------------------------------------


def _storage(numel=4, kind="FloatStorage", key="0"):
    return Raw(ops(("storage", Raw(name("torch", kind)), key, "cpu", numel)) + b"Q")


def _tensor(size, stride, *, offset=0, storage=None):
    return Call("torch._utils", "_rebuild_tensor_v2", storage or _storage(), offset, size, stride, False, {})


_G = "synthesis.b4.const"


def _tensor_file(tensor, data=bytes(16)):
    # under a name of every loader, so that all of them read it
    names = ("synthesis.b4.const", "text_projection", "mapping.mapping.1.weight", "input_layer.0.weight",
             "styles.0.linear.weight", "input.input")  # fmt: skip
    return torch_zip(program(dict.fromkeys(names, tensor)), {"0": data})


_HUGE = 1 << 34
_TENSORS = {
    "huge declared storage": lambda: _tensor_file(_tensor((_HUGE,), (1,), storage=_storage(_HUGE))),
    "huge declared storage of stride 0": lambda: _tensor_file(
        _tensor((_HUGE,), (0,), storage=_storage(_HUGE))
    ),
    "storage of 2**500 elements": lambda: _tensor_file(_tensor((1,), (1,), storage=_storage(1 << 500))),
    "many axes of stride 0": lambda: _tensor_file(
        _tensor((1 << 40,) * 40, (0,) * 40, storage=_storage(1 << 500))
    ),
    "negative stride": lambda: _tensor_file(_tensor((2, 2), (-2, 1))),
    "overflowing stride": lambda: _tensor_file(_tensor((2, 2), (1 << 63, 1))),
    "large stride": lambda: _tensor_file(_tensor((2, 2), (1 << 47, 1))),
    "negative size": lambda: _tensor_file(_tensor((-4,), (1,))),
    "negative offset": lambda: _tensor_file(_tensor((2,), (1,), offset=-1)),
    "offset behind the end": lambda: _tensor_file(_tensor((2,), (1,), offset=3)),
    "offset of 2**60": lambda: _tensor_file(_tensor((2,), (1,), offset=1 << 60)),
    "size without strides": lambda: _tensor_file(_tensor((2, 2), (1,))),
    "size of texts": lambda: _tensor_file(_tensor(("a", "b"), (1, 1))),
    "size of truths": lambda: _tensor_file(_tensor((True, True), (1, 1))),
    "empty axis beside huge ones": lambda: _tensor_file(_tensor((0, 1 << 47, 1 << 47), (1, 1, 1))),
    "65 axes": lambda: _tensor_file(_tensor((1,) * 65, (1,) * 65)),
    "64 axes": lambda: _tensor_file(_tensor((1,) * 64, (1,) * 64)),
    "storage shorter than declared": lambda: _tensor_file(_tensor((4,), (1,)), bytes(8)),
    "storage that is missing": lambda: _tensor_file(_tensor((4,), (1,), storage=_storage(key="7"))),
    "storage key of a path": lambda: _tensor_file(
        _tensor((4,), (1,), storage=_storage(key="../../../../etc/passwd"))
    ),
    "storage key of another entry": lambda: _tensor_file(_tensor((4,), (1,), storage=_storage(key="../data.pkl"))),
    "storage of another type": lambda: _tensor_file(_tensor((4,), (1,), storage=_storage(4, "ComplexStorage"))),
    "tensor of another type than its storage": lambda: _tensor_file(
        Call("torch._utils", "_rebuild_tensor_v3", _storage(4), 0, (4,), (1,), False, {},
             Raw(name("torch", "float64")))
    ),
    "untyped storage": lambda: _tensor_file(
        Call("torch._utils", "_rebuild_tensor_v3",
             Raw(ops(("storage", Raw(name("torch.storage", "UntypedStorage")), "0", "cpu", 16)) + b"Q"),
             0, (16,), (1,), False, {}, Raw(name("torch", "float64")))
    ),
    "tensor that is built upon": lambda: _tensor_file(Raw(ops(_tensor((4,), (1,))) + ops({"data": 1}) + b"b")),
    "parameter of nothing": lambda: _tensor_file(Call("torch._utils", "_rebuild_parameter", None, True, {})),
    "values that are not finite": lambda: _tensor_file(_tensor((4,), (1,)), b"\xff" * 16),
    "one storage in very many names": lambda: torch_zip(
        program({f"encoder.layer{i}": _tensor((1 << 20,), (1,), storage=_storage(1 << 20, "HalfStorage"))
                 for i in range(5_000)}), {"0": bytes(1 << 21)}
    ),
    "one storage in very many views": lambda: torch_zip(
        program({f"encoder.layer{i}": _tensor(((1 << 20) - i,), (1,), storage=_storage(1 << 20))
                 for i in range(5_000)}), {"0": bytes(1 << 22)}
    ),
    "one storage in very many views of stride 0": lambda: torch_zip(
        program({f"encoder.layer{i}": _tensor((1 << 20,), (0,), offset=i, storage=_storage(1 << 20))
                 for i in range(5_000)}), {"0": bytes(1 << 22)}
    ),
    "one array in very many layers": lambda: program(Call(
        "dnnlib.tflib.network", "Network",
        state={"static_kwargs": {}, "components": {}, "variables": [
            (f"mapping/Dense{i}/weight", Raw(_big_array() + b"q\x09" if not i else again(9)))
            for i in range(5_000)]},
    )),
    "one text array in very many layers": lambda: program(Call(
        "dnnlib.tflib.network", "Network",
        state={"static_kwargs": {}, "components": {}, "variables": [
            (f"mapping/Dense{i}/weight", Raw(_big_array(as_text=True) + b"q\x09" if not i else again(9)))
            for i in range(5_000)]},
    )),
    "module without a sane clamp": lambda: program({"G_ema": Call(
        "torch_utils.persistence", "_reconstruct_persistent_obj",
        {"class_name": "G", "state": {"_modules": {
            str(i): Call("torch.nn.modules.module", "Module", state={"conv_clamp": float(i)})
            for i in range(15_000)}}},
    )}),
    "truths and wholes for weights": lambda: _saved({"g_ema": {
        k: v.long() for k, v in _state("rosinality")["g_ema"].items()}}),
    "very many sides": lambda: _saved({
        f"synthesis.b{4 << i}.{part}": torch.zeros(1, 1, 1, 1)
        for i in range(3_000) for part in ("torgb.weight", "conv1.weight")} | {_G: torch.zeros(1, 4, 4)}),
    "generator of 2**17 pixels": lambda: _generator_of_small_layers(16),
    "generator of a wide constant": lambda: _generator_of_small_layers(2, width=1 << 20),
    "generator whose average is costly": lambda: _saved(
        {"g_ema": _state("rosinality")["g_ema"] | {
            "style.1.weight": torch.zeros(4, 1 << 20)}}),
    "rosinality of very many blocks": lambda: _saved({"g_ema": _state("rosinality")["g_ema"] | {
        f"to_rgbs.{i}.conv.weight": torch.zeros(1) for i in range(1, 5_000)}}),
    "clip of a wide text tower": lambda: _clip(text=1 << 17),
    "clip of a wide image tower": lambda: _clip(vision=1 << 17),
    "clip of a long context": lambda: _clip(context=1 << 18),
    "clip of very many layers": lambda: _clip(layers=20_000),
    "clip of a wide residual tower": lambda: _residual_clip(1 << 13),
    "encoder that mixes types": lambda: _saved({"state_dict": {
        "encoder.styles.0.x": torch.zeros(1, dtype=torch.int64),
        "encoder.input_layer.0.weight": torch.zeros(64, 3, 3, 3)}, "opts": {"encoder_type": "Encoder4Editing"}}),
}  # fmt: skip


def _big_array(as_text=False):
    made = Call("numpy.core.multiarray", "_reconstruct", Raw(name("numpy", "ndarray")), (0,), b"b")
    data = "\0" * (4 << 20) if as_text else bytes(4 << 20)
    return ops(made) + ops((1, (1 << 10, 1 << 10), Call("numpy", "dtype", "f4"), False, data)) + b"b"


def _state(kind):
    return torch.load(io.BytesIO(valid_files()[kind][0]), weights_only=True)


def _generator_of_small_layers(blocks, width=4):
    state = {
        _G: torch.zeros(1, 4, width),
        "mapping.fc0.weight": torch.zeros(1, 1),
        "mapping.fc0.bias": torch.zeros(1),
    }
    for index in range(blocks):
        block = f"synthesis.b{4 << index}"
        for part in ("conv0", "conv1", "torgb")[index == 0 :]:
            out, kernel = (3, 1) if part == "torgb" else (1, 3)
            state |= {
                f"{block}.{part}.weight": torch.zeros(out, 1, kernel, kernel),
                f"{block}.{part}.bias": torch.zeros(out),
                f"{block}.{part}.affine.weight": torch.zeros(1, 1),
                f"{block}.{part}.affine.bias": torch.zeros(1),
            }
    return _saved(state)


def _clip(*, text=64, vision=64, context=77, layers=1):
    state = _state("clip")
    sizes = {
        "ln_final.weight": (text,), "positional_embedding": (context, text), "token_embedding.weight": (1, text),
        "text_projection": (text, 1), "visual.conv1.weight": (vision, 3, 1, 1),
        "visual.positional_embedding": (2, 1),
    }  # fmt: skip
    names = [f"transformer.resblocks.{i}.x" for i in range(layers)]
    names += [f"visual.transformer.resblocks.{i}.attn.in_proj_weight" for i in range(layers)]
    one = torch.zeros(1)
    return _saved(state | {k: torch.zeros(v) for k, v in sizes.items()} | dict.fromkeys(names, one))


def _residual_clip(width):
    state = {k: v for k, v in _state("clip").items() if not k.startswith("visual")}
    one = torch.zeros(1)
    state |= {f"visual.layer{i}.0.conv1.weight": torch.zeros(width) if i == 1 else one for i in (1, 2, 3, 4)}
    return _saved(state | {"visual.attnpool.positional_embedding": torch.zeros(2, 1)})


# ---- nested and legacy files --------------------------------------------------------------------------------


def _twice_declared():
    first, second = (
        ops(("storage", Raw(name("torch", "FloatStorage")), "0", "cpu", numel)) + b"Q" for numel in (4, 0)
    )
    tensor = Call("torch._utils", "_rebuild_tensor_v2", Raw(first), 0, (4,), (1,), False, {})
    content = program({"w": tensor, "x": Raw(second)})
    return legacy(content, ["0"], bytes(8))


def _as_text(data):
    return Call("_codecs", "encode", data.decode("latin-1"), "latin1")


_NUMBERS = (
    "styles.0.x",
    "input_layer.0.weight",
    "text_projection",
    "mapping.mapping.1.weight",
    "input.input",
)


def _flood(times):
    return legacy(program(Raw(b"N0" * times + b"N")))


_LEGACY = {
    **{f"payload nested {depth} deep": functools.partial(_nested, PAYLOADS["os.system"], depth) for depth in (2, 3, 8)},
    "storage declared twice": _twice_declared,
    "storage declared twice, nested": lambda: program(
        {"g_ema": Call("torch.storage", "_load_from_bytes", _twice_declared())}),
    "storage declared twice, nested in text": lambda: program(dict.fromkeys(_NUMBERS, Raw(
        ops(Call("torch.storage", "_load_from_bytes", _as_text(_twice_declared())))[:-1] + b"R"))
        | {"state_dict": Call("torch.storage", "_load_from_bytes", _as_text(_twice_declared()))}),
    "one nested file read again and again": lambda: program(Raw(
        ops(_flood(200_000)) + b"q\x01("
        + (name("torch.storage", "_load_from_bytes") + again() + b"\x85R") * 10_000 + b"l")),
    "one nested text read again and again": lambda: program(Raw(
        ops(_as_text(legacy(
            program(_storage(250_000)), ["0"], (250_000).to_bytes(8, "little") + bytes(1_000_000)
        ))) + b"q\x01("
        + (name("torch.storage", "_load_from_bytes") + again() + b"\x85R") * 10_000 + b"l")),
    "nested short bytes read again and again": lambda: program(Raw(
        ops(legacy(program([b"x" * 4000] * 500))) + b"q\x01("
        + (name("torch.storage", "_load_from_bytes") + again() + b"\x85R") * 10_000 + b"l")),
    "nested old text read again and again": lambda: program(Raw(
        ops(legacy(program(Raw(b"T" + struct.pack("<i", 1 << 20) + b"A" * (1 << 20))))) + b"q\x01("
        + (name("torch.storage", "_load_from_bytes") + again() + b"\x85R") * 10_000 + b"l")),
    "legacy list of storages that is none": lambda: legacy(program({}))[:-5] + program(1),
    "legacy list with a storage too many": lambda: legacy(program({}), ["0"], bytes(8)),
    "legacy storage that is missing": lambda: legacy(program({"g_ema": _storage()})),
    "legacy storage of two sizes": lambda: legacy(
        program({"g_ema": _storage()}), ["0"], (5).to_bytes(8, "little") + bytes(20)),
    "legacy storage of 2**60 elements": lambda: legacy(
        program({"g_ema": _storage(1 << 60)}), ["0"], (1 << 60).to_bytes(8, "little")),
    "legacy storage of negative size": lambda: legacy(
        program({"g_ema": _storage(-1)}), ["0"], b"\xff" * 8),
    "legacy view of a storage": lambda: legacy(program({"g_ema": Raw(
        ops(("storage", Raw(name("torch", "FloatStorage")), "0", "cpu", 4, ("1", 0, 4))) + b"Q")})),
    "legacy of big-endian numbers": lambda: legacy(b"").replace(b"\x88", b"\x89"),
    "legacy magic alone": lambda: legacy(b"")[:20],
    "legacy with a list for its system": lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    + pickle.dumps([], 2),
}  # fmt: skip


# ---- zip files ------------------------------------------------------------------------------------------------


def _patched(data, signature, offset, value, *, which=-1):
    """Return a zip file with some bytes of a header of one of its entries replaced."""
    places = [i for i in range(len(data)) if data.startswith(signature, i)]
    at = places[which] + offset
    return data[:at] + value + data[at + len(value) :]


_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def _one_tensor_zip(**options):
    return torch_zip(program({"g_ema": {"input.input": _tensor((4,), (1,))}}), {"0": bytes(16)}, **options)


def _central(offset, value, which=-1):
    return lambda: _patched(_one_tensor_zip(), _CENTRAL, offset, value, which=which)


def _overlapping(entries):
    """Many entries of the directory that all name the same large stored bytes."""
    large = bytes(64 << 20)
    tensors = {f"encoder.l{i}": _tensor((1,), (1,), storage=_storage(1, key=str(i))) for i in range(entries)}
    data = torch_zip(program(tensors), {"x": large})
    directory = struct.unpack("<I", data[-6:-2])[0]
    header, crc = data.rindex(_LOCAL), zlib.crc32(large)
    rest = data[directory:-22]
    made = b"".join(
        struct.pack("<4s4B4HL2L5H2L", _CENTRAL, 20, 3, 20, 0, 0, 0, 0, 0, crc, len(large), len(large),
                    len(entry), 0, 0, 0, 0, 0, header) + entry
        for entry in (f"archive/data/{i}".encode() for i in range(entries))
    )  # fmt: skip
    count = 4 + entries
    end = struct.pack(
        "<4s4H2LH", _END, 0, 0, min(count, 65535), min(count, 65535), len(rest + made), directory, 0
    )
    return data[:directory] + rest + made + end


def _many_entries(count):
    entry = (
        struct.pack("<4s4B4HL2L5H2L", _CENTRAL, 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    )
    directory = entry * count
    return (
        _LOCAL
        + bytes(26)
        + directory
        + struct.pack("<4s4H2LH", _END, 0, 0, 65535, 65535, len(directory), 30, 0)
    )


def _zip64(size, offset, count=4):
    data = _one_tensor_zip()
    at = len(data) - 22
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    end = struct.pack("<4s4H2LH", _END, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:at] + record + locator + end


def _entry_zip64():
    data = _one_tensor_zip()
    at = data.rindex(_CENTRAL)
    name_length = struct.unpack("<H", data[at + 28 : at + 30])[0]
    extra = struct.pack("<HHQQ", 1, 16, 1 << 62, 1 << 62)
    head = data[at : at + 20] + b"\xff" * 8 + data[at + 28 : at + 30] + struct.pack("<H", len(extra))
    changed = data[:at] + head + data[at + 32 : at + 46 + name_length] + extra
    directory = struct.unpack("<I", data[-6:-2])[0]
    end = data[-22:-10] + struct.pack("<LLH", len(changed) - directory, directory, 0)
    return changed + end


_ZIPS = {
    "zip of nothing": lambda: _END + bytes(18),
    "zip that begins as one": lambda: _LOCAL + bytes(100),
    "zip without its directory": lambda: _one_tensor_zip()[:-22],
    "zip deflated": lambda: _one_tensor_zip(compression=zipfile.ZIP_DEFLATED),
    "zip bomb in data.pkl": lambda: torch_zip(
        program("A" * (256 << 20)), compression=zipfile.ZIP_DEFLATED),
    "zip bomb in a storage": lambda: torch_zip(
        program({"g_ema": {"input.input": _tensor((1 << 26,), (1,), storage=_storage(1 << 26))}}),
        {"0": bytes(256 << 20)}, compression=zipfile.ZIP_DEFLATED),
    "zip of an archive without code": lambda: torch_zip(
        program({"g_ema": {}}), extra=[("archive/constants.pkl", program(()))]),
    "zip with bzip2": lambda: _one_tensor_zip(compression=zipfile.ZIP_BZIP2),
    "zip with lzma": lambda: _one_tensor_zip(compression=zipfile.ZIP_LZMA),
    "zip with a password": _central(8, b"\x01\x00"),
    "zip with strong encryption": _central(8, b"\x41\x00"),
    "zip of an unknown method": _central(10, b"\x63\x00"),
    "zip with a wrong checksum": _central(16, b"\x01\x02\x03\x04"),
    "zip with a wrong checksum of its pickle": _central(16, b"\x01\x02\x03\x04", which=0),
    "zip with a wrong compressed size": _central(20, b"\xff\xff\x00\x00"),
    "zip with a wrong size": _central(24, b"\xff\xff\x00\x00"),
    "zip with two wrong sizes": _central(20, b"\xf0\xff\xff\x7f" * 2),
    "zip with two wrong sizes of its pickle": _central(20, b"\xf0\xff\xff\x7f" * 2, which=0),
    "zip with a wrong offset": _central(42, b"\x07\x00\x00\x00"),
    "zip with an offset behind its end": _central(42, b"\xf0\xff\xff\x7f"),
    "zip with a long name": _central(28, b"\xff\xff"),
    "zip with a long comment": _central(32, b"\xff\xff"),
    "zip with a local name beyond the end": lambda: _patched(
        _one_tensor_zip(), _LOCAL, 26, b"\xff\xff\xff\xff"),
    "zip whose directory is longer than it": lambda: _patched(
        _one_tensor_zip(), _END, 12, b"\xf0\xff\xff\x7f"),
    "zip whose directory begins behind it": lambda: _patched(
        _one_tensor_zip(), _END, 16, b"\xf0\xff\xff\x7f"),
    "zip64 directory of 2**62 bytes": lambda: _zip64(1 << 62, 0),
    "zip64 directory of 2**40 bytes": lambda: _zip64(1 << 40, 0),
    "zip64 directory at 2**62": lambda: _zip64(100, 1 << 62),
    "zip64 of 2**62 entries": lambda: _zip64(100, 0, 1 << 62),
    "zip64 entry of 2**62 bytes": _entry_zip64,
    "zip of several disks": lambda: _patched(_one_tensor_zip(), _END, 4, b"\x01\x00\x01\x00"),
    "zip with its pickle twice": lambda: _one_tensor_zip(extra=[("archive/data.pkl", program({}))]),
    "zip with a storage twice": lambda: _one_tensor_zip(extra=[("archive/data/0", b"\xff" * 16)]),
    "zip with two folders": lambda: _one_tensor_zip(extra=[("other/data.pkl", program({}))]),
    "zip with names of parents": lambda: torch_zip(
        program(PAYLOADS["os.system"]), folder="..", extra=[("../../../canary", b"")]),
    "zip with absolute names": lambda: torch_zip(program(PAYLOADS["os.system"]), folder="/etc"),
    "zip with names of terminals": lambda: torch_zip(b"", folder="\x1b[2J"),
    "zip without a pickle": lambda: _one_tensor_zip().replace(b"data.pkl", b"data.pk1"),
    "zip of big-endian numbers": lambda: _one_tensor_zip().replace(b"little", b"bigbig"),
    "zip whose entries overlap": lambda: _overlapping(2_000),
    "zip of a million entries": lambda: _many_entries(1_000_000),
    "zip of a million entries behind a second end": lambda: _patched(
        _many_entries(1_000_000), _END, 16, _END
    ),
    "zip of a million entries before a comment": lambda: (
        _many_entries(1_000_000)[:-2] + struct.pack("<H", 30) + bytes(30)
    ),
    "zip of 100,000 storages": lambda: torch_zip(
        program({"g_ema": {}}), {str(i): b"" for i in range(100_000)}),
    "zip of code only": lambda: scripted(program(Call("__torch__", "Module", state={"text_projection": 1}))),
    "zip of scripted modules in a loop": lambda: scripted(program(Raw(
        name("__torch__.a", "M") + b")\x81q\x01" + ops({f"m{i}": Raw(again()) for i in range(10)}) + b"b"))),
    "zip of scripted modules along exponential paths": lambda: scripted(program(doubled(
        name("__torch__.a", "M") + b")\x81",
        name("__torch__.a", "M") + b")\x81" + ops({"a": Raw(again()), "b": Raw(again())}) + b"b", 28))),
    "zip of scripted modules nested deep": lambda: scripted(program(doubled(
        name("__torch__.a", "M") + b")\x81",
        name("__torch__.a", "M") + b")\x81" + ops({"n" * 10_000: Raw(again())}) + b"b", 100))),
    "zip that is a wheel": lambda: torch_zip(b"").replace(b"data.pkl", b"setup.py"),
}  # fmt: skip


# ---- safetensors ----------------------------------------------------------------------------------------------


def safe(header, data=b"", length=None):
    """Return a safetensors file with any header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _claimed(form, config, state=None):
    config = config if isinstance(config, str) else json.dumps(config)
    own = json.dumps({"format": form, "config": config})
    return safetensors.torch.save(state or {"x": torch.zeros(1)}, {"styleclip": own})


def _meta(own):
    return lambda: safetensors.torch.save({"x": torch.zeros(1)}, {"styleclip": own})


def _configured(form, config, **change):
    return lambda: _claimed(form, config | change)


_GENERATOR = functools.partial(_configured, "styleclip-generator-1", TINY)
_COMPACT = functools.partial(
    _configured, "styleclip-encoder-1",
    {"resolution": 16, "num_ws": 4, "w_dim": 4, "widths": [4, 4, 4, 4], "hidden": 8},
)  # fmt: skip
_PSP = functools.partial(_configured, "styleclip-psp-1", {"kind": "e4e", "num_ws": 18})
_ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def _same_weights(kind, change):
    state = safetensors.torch.load(valid_files()[kind][0])
    length = int.from_bytes(valid_files()[kind][0][:8], "little")
    metadata = json.loads(valid_files()[kind][0][8 : 8 + length]).get("__metadata__")
    return safetensors.torch.save({k: change(v) for k, v in state.items()}, metadata)


def _same_weights_other_config(kind, **change):
    state = safetensors.torch.load(valid_files()[kind][0])
    length = int.from_bytes(valid_files()[kind][0][:8], "little")
    own = json.loads(json.loads(valid_files()[kind][0][8 : 8 + length])["__metadata__"]["styleclip"])
    return _claimed(own["format"], json.loads(own["config"]) | change, state)


_SAFETENSORS = {
    "safetensors of 2**62 bytes of header": lambda: safe({}, length=1 << 62),
    "safetensors of 2**63 bytes of header": lambda: safe({}, length=1 << 63),
    "safetensors of no header": lambda: safe(b"{", length=0),
    "safetensors header that ends early": lambda: safe({"x": _ONE}, bytes(4), length=20),
    "safetensors header that is no JSON": lambda: safe(b"{x", bytes(4)),
    "safetensors header that is no text": lambda: safe(b'{"\xff\xfe": 1}', bytes(4)),
    "safetensors header nested deep": lambda: safe(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "safetensors header of lists nested deep": lambda: safe(b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
    "safetensors of twice the same name": lambda: safe(
        b'{"x":' + json.dumps(_ONE).encode() + b',"x":' + json.dumps(_ONE | {"data_offsets": [4, 8]}).encode()
        + b"}", bytes(8)),
    "safetensors of twice the metadata": lambda: safe(
        b'{"__metadata__":{"a":"b"},"__metadata__":{"c":"d"},"x":' + json.dumps(_ONE).encode() + b"}", bytes(4)),
    "safetensors with overlap": lambda: safe({"x": _ONE, "y": _ONE}, bytes(4)),
    "safetensors with a gap": lambda: safe({"x": _ONE, "y": _ONE | {"data_offsets": [8, 12]}}, bytes(12)),
    "safetensors with bytes left over": lambda: safe({"x": _ONE}, bytes(400)),
    "safetensors that is cut": lambda: safe({"x": _ONE}, bytes(2)),
    "safetensors of offsets turned round": lambda: safe({"x": _ONE | {"data_offsets": [4, 0]}}, bytes(4)),
    "safetensors of negative offsets": lambda: safe({"x": _ONE | {"data_offsets": [-4, 0]}}, bytes(4)),
    "safetensors of a huge shape": lambda: safe({"x": _ONE | {"shape": [1 << 40, 1 << 40]}}, bytes(4)),
    "safetensors of an overflowing shape": lambda: safe(
        {"x": _ONE | {"shape": [1 << 63, 2, 1 << 63], "data_offsets": [0, 0]}}),
    "safetensors of an empty huge shape": lambda: safe(
        {"x": _ONE | {"shape": [0, 1 << 62], "data_offsets": [0, 0]}}),
    "safetensors of a negative shape": lambda: safe({"x": _ONE | {"shape": [-1]}}, bytes(4)),
    "safetensors of very many axes": lambda: safe({"x": _ONE | {"shape": [1] * 1_000_000}}, bytes(4)),
    "safetensors of an unknown type": lambda: safe({"x": _ONE | {"dtype": "OBJECT"}}, bytes(4)),
    "safetensors of truths": lambda: safe({"x": _ONE | {"dtype": "BOOL", "shape": [4]}}, b"\xff" * 4),
    "safetensors metadata that is a list": lambda: safe({"__metadata__": [], "x": _ONE}, bytes(4)),
    "safetensors metadata of numbers": lambda: safe({"__metadata__": {"a": 1}, "x": _ONE}, bytes(4)),
    "safetensors metadata nested": lambda: safe({"__metadata__": {"styleclip": {}}, "x": _ONE}, bytes(4)),
    "safetensors of many names": lambda: safe(
        {f"n{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(50_000)}),
    "safetensors of a long name": lambda: safe({"n" * 2_000_000: _ONE}, bytes(4)),
    "own header that is no JSON": _meta("{"),
    "own header nested deep": _meta("[" * 200_000),
    "own header that is a number": _meta("1"),
    "own header of many digits": _meta('{"format": ' + "9" * 50_000 + "}"),
    "own header without a number": _meta('{"format": NaN}'),
    "own header with a list for its format": _meta('{"format": []}'),
    "own header with a long format": _meta(json.dumps({"format": "f" * 2_000_000})),
    "own header with terminals in its format": _meta(json.dumps({"format": "\x1b[2J\n\u202e"})),
    "own header with lone surrogates": _meta('{"format": "\\ud800"}'),
    **{f"own header of {form} without a configuration": _meta(json.dumps({"format": form}))
       for form in ("styleclip-generator-1", "styleclip-encoder-1", "styleclip-psp-1")},
    **{f"configuration of {form} is {config[:12]}": functools.partial(_claimed, form, config)
       for form in ("styleclip-generator-1", "styleclip-encoder-1", "styleclip-psp-1")
       for config in ("{", "[]", "1", "null", '{"x": 1}', "[" * 100_000, '{"resolution": []}')},
    "configuration that is a number": _meta('{"format": "styleclip-generator-1", "config": 1}'),
    "generator of 2**20 layers": _GENERATOR(mapping_layers=1 << 20),
    "generator of 2**4000 pixels": _GENERATOR(resolution=1 << 4000),
    "generator of 2**40 pixels": _GENERATOR(resolution=1 << 40),
    "generator of a pixel and a half": _GENERATOR(resolution=1.5),
    "generator of a wide picture": _GENERATOR(const_width=1 << 60),
    "generator of very many classes": _GENERATOR(c_dim=1 << 60),
    "generator of half a width": _GENERATOR(z_dim=0.5),
    "generator of text": _GENERATOR(z_dim="x" * 1_000_000),
    "generator of no number": _GENERATOR(mapping_lr=float("nan")),
    "generator without rate": _GENERATOR(mapping_lr=0),
    "generator with a stray setting": _GENERATOR(**{"x" * 100_000: 1}),
    "generator clamped by text": lambda: _same_weights_other_config("safe generator", conv_clamp="x"),
    "generator clamped by no number": lambda: _same_weights_other_config(
        "safe generator", conv_clamp=float("nan")),
    "generator clamped below zero": lambda: _same_weights_other_config("safe generator", conv_clamp=-1),
    "generator with a rate of text": lambda: _same_weights_other_config("safe generator", mapping_lr="x"),
    "generator with an infinite rate": lambda: _same_weights_other_config(
        "safe generator", mapping_lr=float("inf")),
    "compact encoder of 2**40 pixels": _COMPACT(resolution=1 << 40),
    "compact encoder of 2**20 pixels": _COMPACT(resolution=1 << 20),
    "compact encoder of very many stages": _COMPACT(widths=[4] * 100_000),
    "compact encoder of wide stages": _COMPACT(widths=[1 << 20] * 4),
    "compact encoder of a wide layer": _COMPACT(hidden=1 << 40),
    "compact encoder of many rows": _COMPACT(num_ws=1 << 40),
    "compact encoder of negative rows": _COMPACT(num_ws=-1),
    "compact encoder with text for stages": _COMPACT(widths="x" * 1_000_000),
    "compact encoder of other pixels": lambda: _same_weights_other_config("safe encoder", resolution=17),
    "published encoder of very many rows": _PSP(num_ws=1 << 40),
    "published encoder of no rows": _PSP(num_ws=0),
    "published encoder of text": _PSP(num_ws="x"),
    "published encoder of an unknown kind": _PSP(kind="x" * 1_000_000),
    "published encoder of half a pixel": _PSP(height=256.5),
    "published encoder of a height with a point": _PSP(height=256.0),
    "compact encoder of pixels with a point": lambda: _same_weights_other_config(
        "safe encoder", resolution=16.0
    ),
    "published encoder of negative height": _PSP(height=-1),
    "published encoder of a wide code": _PSP(w_dim=1 << 60),
    **{f"{kind} of {label}": functools.partial(_same_weights, kind, change)
       for kind in ("safe generator", "safe encoder", "safe mapper", "safe clip")
       for label, change in {
           "NaN": lambda x: torch.full_like(x, float("nan")) if x.is_floating_point() else x,
           "infinity": lambda x: torch.full_like(x, float("inf")) if x.is_floating_point() else x,
           "one axis more": lambda x: x[None],
           "no elements": lambda x: x.flatten()[:0],
       }.items()},
    **{f"{kind} of {label}": functools.partial(_same_weights, kind, change)
       for kind in ("safe generator", "safe encoder", "safe mapper")
       for label, change in {
           "whole numbers": lambda x: x.long(), "truths": lambda x: x.bool(),
           "complex numbers": lambda x: x.to(torch.complex64),
       }.items()},
}  # fmt: skip


# ---- other files, and what is no file -------------------------------------------------------------------------


def _npy(header):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _npy_valid():
    stream = io.BytesIO()
    np.save(stream, np.zeros(4))
    return stream.getvalue()


_OTHERS = {
    "empty": lambda: b"", "one byte": lambda: b"\x80", "a stop": lambda: b"\x80\x04.", "zeros": lambda: bytes(1 << 20),
    "ones": lambda: b"\xff" * (1 << 20), "protocol bytes": lambda: b"\x80" * 100_000,
    "noise": lambda: np.random.default_rng(1).bytes(100_000),
    "noise as a pickle": lambda: b"\x80\x04" + np.random.default_rng(2).bytes(100_000),
    "noise as a zip": lambda: _LOCAL + np.random.default_rng(3).bytes(100_000),
    "noise as safetensors": lambda: (90_000).to_bytes(8, "little") + b"{" + np.random.default_rng(4).bytes(100_000),
    "array": _npy_valid, "array of objects": lambda: _npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}")
    + pickle.dumps(1), "array of a huge header": lambda: b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "web page": lambda: b"<!DOCTYPE html><script>alert(1)</script>", "gzip": lambda: b"\x1f\x8b\x08" + bytes(100),
    "tar": lambda: b"x" * 257 + b"ustar" + bytes(1000), "ELF": lambda: b"\x7fELF" + bytes(100),
    "script": lambda: f"#!/bin/sh\n{COMMAND}\n".encode(), "Python": lambda: b"import os; os.system('touch canary')",
    "pickle of protocol 0": lambda: b"cos\nsystem\n(S'touch canary'\ntR.", "spaces": lambda: b" " * (1 << 20),
    "Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "pickle then noise": lambda: program({}) + bytes(1000),
}  # fmt: skip


def _write(build, path):
    path.write_bytes(build())


def _directory(path):
    path.mkdir()


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    import socket

    back = Path.cwd()
    os.chdir(path.parent)  # such names are at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(back)


def _link_to(target):
    return lambda path: path.symlink_to(target)


def _hostile_link(path):
    (path.parent / "target").write_bytes(program(PAYLOADS["os.system"]))
    path.symlink_to("target")


def _pipe_link(path):
    os.mkfifo(path.parent / "pipe")
    path.symlink_to("pipe")


_PLACES = {
    "directory": _directory, "pipe": _pipe, "socket": _socket, "link to nothing": _link_to("nothing"),
    "link to itself": _link_to("x.pt"), "link to a directory": _link_to("."), "link to a pipe": _pipe_link,
    "link to a hostile file": _hostile_link, "link to zeros": _link_to("/dev/zero"),
    "link to nowhere": _link_to("/dev/null"), "link to a terminal": _link_to("/dev/tty"),
    "link to memory": _link_to("/proc/self/mem"), "link to the kernel's messages": _link_to("/dev/kmsg"),
    "missing": lambda path: None,
}  # fmt: skip


def _cases():
    for wrapped, wrap in _WRAPPERS.items():
        for label, value in PAYLOADS.items():
            yield f"payload {label}, {wrapped}", functools.partial(wrap, value)
    for label, value in BOMBS.items():
        yield f"bomb {label}", functools.partial(program, value)
        if len(ops(value)) < 100_000:
            yield f"bomb {label}, in a zip", lambda value=value: torch_zip(program(value))
    for cases in (_TENSORS, _LEGACY, _ZIPS, _SAFETENSORS, _OTHERS):
        yield from cases.items()


CORPUS = {label: functools.partial(_write, build) for label, build in _cases()} | _PLACES


def _sampled():
    # what is refused is a name or an operation, whatever the file around it: one wrapper each, in turn
    wrappers = list(_WRAPPERS)
    for number, label in enumerate(PAYLOADS):
        yield f"payload {label}, {wrappers[number % len(wrappers)]}"
    for number, label in enumerate(BOMBS):
        wrapped = f"bomb {label}, in a zip"
        yield wrapped if number % 2 and wrapped in CORPUS else f"bomb {label}"
    for cases in (_TENSORS, _LEGACY, _ZIPS, _SAFETENSORS, _OTHERS, _PLACES):
        yield from cases


SAMPLE = list(_sampled())
WRAPPERS = list(_WRAPPERS)
