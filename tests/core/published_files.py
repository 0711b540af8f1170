"""Writers of weights files with the structure that the original programs give them.

The classes below exist only so that ``pickle`` writes the names that NVIDIA's files hold; the source
text that persistent objects carry is replaced by a stand-in that would leave a mark if it were run.
"""

import collections
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

CANARY = "import pathlib; pathlib.Path({path!r}).touch()\nraise SystemExit('source text was run')\n"


class EasyDict(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Network:
    """Stands in for dnnlib.tflib.network.Network, whose state is a dictionary."""

    def __init__(self, **state):
        self.__dict__.update(state)

    def __getstate__(self):
        return self.__dict__


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a test file is never unpickled")


class pretend_modules:
    """Give the classes above the module names of NVIDIA's code while files are written."""

    def __enter__(self):
        self.before = dict(sys.modules)
        places = {
            "dnnlib.util": EasyDict,
            "dnnlib.tflib.network": Network,
            "torch_utils.persistence": _reconstruct_persistent_obj,
        }
        for name, value in places.items():
            for index in range(name.count(".") + 1):
                part = ".".join(name.split(".")[: index + 1])
                sys.modules[part] = types.ModuleType(part)
            setattr(sys.modules[name], value.__name__, value)
            value.__module__ = name

    def __exit__(self, *_):
        for name in set(sys.modules) - set(self.before):
            del sys.modules[name]


class Persistent(nn.Module):
    """A module that pickles as NVIDIA's persistent classes do."""

    def __init__(self, class_name, source, **attributes):
        super().__init__()
        self.__dict__["_class_name"], self.__dict__["_source"] = class_name, source
        for name, value in attributes.items():
            setattr(self, name, value)
        self._init_args = ()
        self._init_kwargs = EasyDict(attributes)

    def __reduce__(self):
        state = {k: v for k, v in self.__dict__.items() if k not in ("_class_name", "_source")}
        meta = {
            "type": "class", "version": 6, "module_src": self._source, "class_name": self._class_name,
            "state": state,
        }  # fmt: skip
        return _reconstruct_persistent_obj, (meta,), None, None, None


def persistent_generator(state, config, *, source, architecture="skip", lr=0.01):
    """Return NVIDIA's generator made of ``state`` (NVIDIA's names) as nested persistent modules."""
    root = Persistent(
        "Generator", source, z_dim=config.z_dim, c_dim=config.c_dim, w_dim=config.w_dim,
        img_resolution=config.resolution, img_channels=3, num_ws=config.num_ws,
    )  # fmt: skip
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        module = root
        for depth, part in enumerate(path):
            if part not in module._modules:
                module.add_module(part, _child(path[: depth + 1], source, config, architecture, lr))
            module = module._modules[part]
        if leaf in ("w_avg", "noise_const", "resample_filter"):
            module.register_buffer(leaf, tensor.clone())
        else:
            module.register_parameter(leaf, nn.Parameter(tensor.clone(), requires_grad=False))
    return root


def _child(path, source, config, architecture, lr):
    name = path[-1]
    if name in ("mapping", "synthesis"):
        return Persistent(f"{name.capitalize()}Network", source, w_dim=config.w_dim, num_ws=config.num_ws)
    if len(path) == 2 and path[0] == "synthesis":
        return Persistent("SynthesisBlock", source, architecture=architecture, use_fp16=False, is_last=False)
    if name in ("conv0", "conv1", "torgb"):
        kind = "ToRGBLayer" if name == "torgb" else "SynthesisLayer"
        return Persistent(
            kind, source, conv_clamp=config.conv_clamp, activation="lrelu", weight_gain=np.float64(0.25)
        )
    gain = lr if path[0] == "mapping" and name.startswith("fc") else 1.0
    return Persistent(
        "FullyConnectedLayer", source, activation="lrelu", bias_gain=gain, weight_gain=np.float64(0.1)
    )


def write_nvidia(path, state, config, *, canary, wrapped=True, protocol=4, keys=("G_ema",), **options):
    """Write NVIDIA's ``.pkl``: with ``wrapped`` the dictionary that its training writes."""
    with pretend_modules():
        source = CANARY.format(path=str(canary))
        network = persistent_generator(state, config, source=source, **options)
        content = network
        if wrapped:
            other = Persistent("Discriminator", source, c_dim=0, b4=None)
            other.register_parameter("weight", nn.Parameter(torch.randn(300, 300)))
            content = {
                "G": persistent_generator({k: v + 1 for k, v in state.items()}, config, source=source),
                "D": other,
                "training_set_kwargs": EasyDict(
                    class_name="training.dataset.ImageFolderDataset", use_labels=False
                ),
                "augment_pipe": Persistent("AugmentPipe", source, p=np.float64(0.6), xflip=1),
                **dict.fromkeys(keys, network),
            }
        Path(path).write_bytes(pickle.dumps(content, protocol=protocol))


def write_tensorflow(path, state, config, *, ada=True, protocol=4, **settings):
    """Write a TensorFlow pickle of three networks, the last of which is made of ``state``."""

    def numpy(name):
        return state[name].numpy()

    synthesis, mapping = [], []
    for index in range(config.mapping_layers):
        mapping += [(f"Dense{index}/weight", numpy(f"mapping.fc{index}.weight").T.copy())]
        mapping += [(f"Dense{index}/bias", numpy(f"mapping.fc{index}.bias"))]
    if config.c_dim:
        mapping += [("LabelEmbed/weight", numpy("mapping.embed.weight").T.copy())]
        mapping += [("LabelEmbed/bias", numpy("mapping.embed.bias"))]
    synthesis += [("4x4/Const/const", numpy("synthesis.b4.const")[None])]
    for side in config.resolutions:
        parts = {"conv1": "Conv" if side == 4 else "Conv1", "torgb": "ToRGB"}
        if side > 4:
            parts["conv0"] = "Conv0_up"
        for ours, theirs in parts.items():
            prefix, target = f"synthesis.b{side}.{ours}", f"{side}x{side}/{theirs}"
            kernel = numpy(f"{prefix}.weight").transpose(2, 3, 1, 0)
            kernel = kernel[::-1, ::-1] if ours == "conv0" else kernel
            synthesis += [
                (f"{target}/weight", np.ascontiguousarray(kernel)),
                (f"{target}/bias", numpy(f"{prefix}.bias")),
                (f"{target}/mod_weight", np.asfortranarray(numpy(f"{prefix}.affine.weight").T)),
                (f"{target}/mod_bias", numpy(f"{prefix}.affine.bias") - 1),
            ]
            if ours != "torgb":
                number = int(np.log2(side)) * 2 - (5 if ours == "conv0" else 4)
                synthesis += [
                    (f"{target}/noise_strength", numpy(f"{prefix}.noise_strength")),
                    (f"noise{number}", numpy(f"{prefix}.noise_const")[None, None]),
                ]
    with pretend_modules():
        common = {
            "version": 4,
            "build_module_src": CANARY.format(path="/nonexistent"),
            "build_func_name": "G",
        }
        static = EasyDict(resolution=config.resolution, fmap_base=config.channel_base // 2, **settings)

        def network(name, variables, components=None):
            return Network(
                name=name, static_kwargs=static, variables=variables,
                components=EasyDict(components or {}), **common,
            )  # fmt: skip

        parts = {"synthesis": network("G_synthesis", synthesis), "mapping": network("G_mapping", mapping)}
        average = [("lod", np.float32(0)), ("dlatent_avg", numpy("mapping.w_avg"))]
        generator = network("Gs", average, parts)
        content = (network("G", []), network("D", [("4x4/Conv/weight", np.zeros((3, 3)))]), generator)
        Path(path).write_bytes(pickle.dumps(content, protocol=protocol))


def state_dict_of(state):
    """Return a state dict as torch's modules do: ordered, with metadata as an attribute."""
    ordered = collections.OrderedDict(state)
    ordered._metadata = collections.OrderedDict({"": {"version": 1}})
    return ordered
