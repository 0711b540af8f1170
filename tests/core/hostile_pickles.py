"""An assembler of pickles that no writer would make, and programs that try to run something.

Nothing here is ever unpickled by Python, except in the test that proves that the canary works.
"""

import struct
from dataclasses import dataclass

COMMAND = "touch canary"  # what every program wants to run; the tests look for the file


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    code: bytes


class Call:
    """A call of a name with arguments, then perhaps a state to build on the result."""

    def __init__(self, module, name, *arguments, state=None):
        self.module, self.name, self.arguments, self.state = module, name, arguments, state


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode("utf-8", "surrogatepass")


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def ops(value):
    """Return the opcodes that push ``value``."""
    match value:
        case Raw():
            return value.code
        case Call():
            made = name(value.module, value.name) + ops(value.arguments) + b"R"
            return made if value.state is None else made + ops(value.state) + b"b"
        case bool() | None:
            return {True: b"\x88", False: b"\x89", None: b"N"}[value]
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8b" + struct.pack("<i", len(data)) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return text(value)
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(ops, value)) + b"t"
        case list():
            return b"](" + b"".join(map(ops, value)) + b"e"
        case dict():
            return b"}(" + b"".join(ops(k) + ops(v) for k, v in value.items()) + b"u"
    raise TypeError(type(value))


def program(value):
    """Return a whole pickle of ``value``."""
    return b"\x80\x04" + ops(value) + b"."


def doubled(first, step, times, slot=1):
    """Return opcodes that store ``first``, then replace it ``times`` times by what ``step`` makes of it.

    ``step`` is opcodes that find the value in the memo at ``slot``; what they leave is stored there again.
    """
    store = b"q" + bytes([slot])
    return Raw(first + store + b"".join(b"0" + step + store for _ in range(times)))


def again(slot=1):
    return b"h" + bytes([slot])


PAIR = again() + again() + b"\x86"  # two references to one value, as a tuple
LAUGHS = doubled(b")", PAIR, 60)  # 2**60 leaves in 300 bytes
LONG_TEXT = text("A" * 1_000_000)

_CALLS = {
    "os.system": (COMMAND,), "posix.system": (COMMAND,), "nt.system": (COMMAND,), "os.popen": (COMMAND,),
    "os.execv": ("/bin/sh", ["sh", "-c", COMMAND]), "os.remove": ("canary",),
    "os.posix_spawn": ("/bin/sh", ["sh", "-c", COMMAND], {}), "os.putenv": ("CANARY", "1"),
    "commands.getoutput": (COMMAND,), "subprocess.Popen": (["sh", "-c", COMMAND],),
    "subprocess.check_output": (["sh", "-c", COMMAND],), "subprocess.getoutput": (COMMAND,),
    "builtins.eval": (f"__import__('os').system('{COMMAND}')",),
    "builtins.exec": (f"import os; os.system('{COMMAND}')",), "builtins.compile": ("1", "x", "eval"),
    "builtins.__import__": ("this",), "builtins.open": ("canary", "w"), "builtins.breakpoint": (),
    "builtins.input": (), "builtins.getattr": (Call("builtins", "__import__", "os"), "system"),
    "builtins.setattr": (Call("builtins", "__import__", "os"), "system", 1), "builtins.globals": (),
    "builtins.vars": (), "builtins.type": ("A", (), {}), "builtins.map": (Raw(name("os", "system")), [COMMAND]),
    "builtins.eval.__call__": ("1",), "builtins.apply": (Raw(name("os", "system")), [COMMAND]),
    "builtins.memoryview": (b"x",), "builtins.range": (1 << 60,), "builtins.bytes": (1 << 40,),
    "builtins.bytearray": (1 << 40,), "builtins.list": (Call("builtins", "range", 1 << 40),),
    "__builtin__.eval": ("1",), "__builtin__.execfile": ("/dev/null",), "io.open": ("canary", "w"),
    "_io.FileIO": ("canary", "w"), "codecs.open": ("canary", "w"), "_codecs.decode": ("A" * 9, "rot13"),
    "_codecs.encode": ("A" * 9, "bz2"), "functools.partial": (Raw(name("os", "system")), COMMAND),
    "functools.reduce": (Raw(name("builtins", "eval")), ["1", {}]), "operator.attrgetter": ("__class__",),
    "operator.methodcaller": ("system", COMMAND), "operator.call": (Raw(name("os", "system")), COMMAND),
    "itertools.repeat": (1,), "copyreg.__newobj__": (Raw(name("subprocess", "Popen")), [COMMAND]),
    "copyreg._reconstructor": (Raw(name("subprocess", "Popen")), Raw(name("builtins", "object")), None),
    "copyreg.add_extension": ("os", "system", 1), "copyreg.pickle": (Raw(name("builtins", "int")), None),
    "importlib.import_module": ("this",), "importlib.reload": (Call("importlib", "import_module", "os"),),
    "runpy.run_path": ("/dev/null",), "runpy._run_code": ("1", {}), "code.interact": (),
    "pty.spawn": ("sh",), "socket.create_connection": (("127.0.0.1", 9),), "ctypes.CDLL": (None,),
    "webbrowser.open": ("http://127.0.0.1",), "urllib.request.urlopen": ("http://127.0.0.1:9",),
    "shutil.rmtree": ("canary",), "pathlib.Path.touch": (Call("pathlib", "PosixPath", "canary"),),
    "tempfile.mkdtemp": (), "timeit.timeit": ("open('canary', 'w')",), "cProfile.run": ("1",),
    "pdb.run": ("1",), "pydoc.pipepager": ("x", COMMAND), "logging.config.dictConfig": ({},),
    "multiprocessing.util.spawnv_passfds": (b"/bin/sh", [], []), "site.main": (), "marshal.loads": (b"N",),
    "pickle.loads": (b"N.",), "_pickle.loads": (b"N.",), "types.FunctionType": (None, {}),
    "types.CodeType": (), "weakref.ref": (None,), "gc.get_objects": (), "sys.exit": (),
    "sys.setrecursionlimit": (1 << 30,), "inspect.getattr_static": (None, "x"), "ast.literal_eval": ("1",),
    "numpy.load": ("/dev/null",), "numpy.testing._private.utils.runstring": ("1", {}),
    "numpy.f2py.crackfortran.getlincoef": ("1", {}), "numpy.core.memmap": ("canary",),
    "numpy.ndarray": ((1 << 20, 1 << 20),), "numpy.fromfile": ("/etc/hostname",), "torch.load": ("canary",),
    "torch.hub.load": ("a/b", "c"), "torch.jit.load": ("canary",), "torch.serialization.load": ("canary",),
    "torch.zeros": (1 << 40,), "torch.ones": (1 << 40,), "torch.save": ({}, "canary"),
    "torch.ops.load_library": ("canary",), "torch.classes.load_library": ("canary",),
    "torch.utils.collect_env.run": (COMMAND,), "torch.utils.cpp_extension.load": ("x", []),
    "torch.distributed.rpc.rpc_sync": ("x", None), "torch._dynamo.guards.eval": ("1",),
    "torch.storage.UntypedStorage": (1 << 40,), "torch.FloatStorage": (1 << 40,),
    "torch.nn.modules.linear.Linear": (1 << 20, 1 << 20), "torch._utils._rebuild_device_tensor_from_numpy": (),
    "torch.multiprocessing.reductions.rebuild_storage_filename": (), "torch.package.PackageImporter": ("x",),
    "torch_utils.persistence._src_to_module": (f"import os; os.system('{COMMAND}')",),
    "torch_utils.misc.copy_params_and_buffers": (), "dnnlib.util.open_url": ("http://127.0.0.1:9",),
    "dnnlib.util.call_func_by_name": ("os.system",), "dnnlib.tflib.network._build_module": (),
    "dill._dill._create_type": (), "cloudpickle.cloudpickle._make_function": (), "joblib.load": ("x",),
    "styleclip_core.files.checkpoint.write_state": ("canary", {}, {}), "collections.Counter": ([1],),
    "__torch__.Module": (), "__main__.x": (), "": (), "a\x1b[2J.b": (), "x" * 3000 + ".y": (),
}  # fmt: skip


def _calls():
    for full, arguments in _CALLS.items():
        module, _, attribute = full.rpartition(".")
        yield full.replace("\x1b", "ESC")[:60] or "no name", Call(module, attribute, *arguments)


_SYSTEM, _ARGUMENT = name("os", "system"), text(COMMAND)
_MODULE = name("torch.nn.modules.module", "Module")
PAYLOADS = dict(_calls()) | {
    "stack global": Raw(text("os") + text("system") + b"\x93" + _ARGUMENT + b"\x85R"),
    "stack global of a dotted name": Raw(
        text("torch.nn.modules.module") + text("torch.os.system") + b"\x93" + _ARGUMENT + b"\x85R"
    ),
    "stack global of numbers": Raw(b"K\x01K\x02\x93"),
    "memo of a name": Raw(_SYSTEM + b"q\x000h\x00" + _ARGUMENT + b"\x85R"),
    "INST": Raw(b"(" + _ARGUMENT + b"ios\nsystem\n"),
    "OBJ": Raw(b"(" + _SYSTEM + _ARGUMENT + b"o"),
    "EXT1": Raw(b"\x82\x01"),
    "EXT2": Raw(b"\x83\x01\x00"),
    "EXT4": Raw(b"\x84\x01\x00\x00\x00"),
    "NEXT_BUFFER": Raw(b"\x97"),
    "READONLY_BUFFER": Raw(b"\x97\x98"),
    "NEWOBJ": Raw(name("subprocess", "Popen") + _ARGUMENT + b"\x85\x81"),
    "NEWOBJ_EX": Raw(name("subprocess", "Popen") + _ARGUMENT + b"\x85}\x92"),
    "NEWOBJ of a layer": Raw(_MODULE + _ARGUMENT + b"\x85\x81"),
    "NEWOBJ_EX of text": Raw(_ARGUMENT + b")}\x92"),
    "REDUCE of text": Raw(_ARGUMENT + b")R"),
    "REDUCE without a tuple": Raw(_MODULE + b"]R"),
    "BUILD with __setstate__": Raw(
        _MODULE + b")\x81" + ops({"__setstate__": Raw(_SYSTEM)}) + b"b" + _ARGUMENT + b"b"
    ),
    "BUILD of a class": Raw(_MODULE + ops({"__call__": 1}) + b"b"),
    "BUILD of attributes": Raw(
        _MODULE + b")\x81" + ops({"__class__": 1, "__dict__": {}, "__reduce__": "x"}) + b"b"
    ),
    "BUILD with slots": Raw(_MODULE + b")\x81" + ops((None, {"__class__": Raw(_MODULE)})) + b"b"),
    "BUILD of text": Raw(_ARGUMENT + b"}b"),
    "BUILD of a dictionary": Raw(b"}" + ops({"__class__": 1}) + b"b"),
    "PERSID": Raw(b"Pos.system\n"),
    "BINPERSID of a name": Raw(_SYSTEM + b"Q"),
    "BINPERSID of text": Raw(_ARGUMENT + b"Q"),
    "BINPERSID of a function": Raw(ops(("storage", Raw(_SYSTEM), "0", "cpu", 4)) + b"Q"),
    "BINPERSID of a list": Raw(ops(("storage", [], "0", "cpu", 4)) + b"Q"),
    "BINPERSID of a module": Raw(ops(("module", Raw(_MODULE), "x.py", "import os")) + b"Q"),
    "BINPERSID of a path": Raw(
        ops(("storage", Raw(name("torch", "FloatStorage")), "../../../etc/passwd", "cpu", 4)) + b"Q"
    ),
    "persistent source": Call(
        "torch_utils.persistence", "_reconstruct_persistent_obj",
        {"type": "class", "version": 6, "module_src": f"import os\nos.system('{COMMAND}')",
         "class_name": "Generator", "state": {"_modules": {}, "_parameters": {}, "_buffers": {}}},
    ),
    "persistent source of a hooked kind": Call(
        "torch_utils.persistence", "_reconstruct_persistent_obj",
        {"type": "x", "module_src": Raw(_SYSTEM), "class_name": "__import__", "state": {}},
    ),
    "TensorFlow source": Call(
        "dnnlib.tflib.network", "Network",
        state={"build_module_src": f"import os\nos.system('{COMMAND}')", "build_func_name": "G",
               "static_kwargs": {}, "variables": [], "components": {}},
    ),
    "nested storage": Call("torch.storage", "_load_from_bytes", program(Call("os", "system", COMMAND))),
    "nested text": Call("torch.storage", "_load_from_bytes", Call("_codecs", "encode", COMMAND, "latin1")),
    "nested name": Call("torch.storage", "_load_from_bytes", Raw(_SYSTEM)),
}  # fmt: skip


# ---- programs that would take forever, or all memory -----------------------------------------------------

_ENCODED = name("_codecs", "encode") + again() + text("latin1") + b"\x86R"
_ARRAY = Call("numpy.core.multiarray", "_reconstruct", Raw(name("numpy", "ndarray")), (0,), b"b")
_FLOAT = Call("numpy", "dtype", "f4")


def _filled(shape, data, dtype=_FLOAT):
    return Raw(ops(_ARRAY) + ops((1, shape, dtype, False, data)) + b"b")


def _module(state):
    return Call(
        "torch_utils.persistence", "_reconstruct_persistent_obj", {"class_name": "Generator", "state": state}
    )


def _looped_modules(children):
    """Modules that hold themselves under several names: exponentially many paths to walk."""
    state = b"}" + b"q\x01" + text("_modules") + b"}("
    state += b"".join(text(f"m{i}") + again(2) for i in range(children)) + b"us"
    made = name("torch.nn.modules.module", "Module") + b")\x81q\x02"
    return Raw(made + state + b"b")


def _looped_networks(children):
    made = name("dnnlib.tflib.network", "Network") + b")\x81q\x02"
    state = {"variables": [], "components": {f"m{i}": Raw(again(2)) for i in range(children)}}
    return Raw(made + ops(state) + b"b")


def _network(variables, **settings):
    return Call(
        "dnnlib.tflib.network", "Network",
        state={"static_kwargs": settings, "variables": variables, "components": {}},
    )  # fmt: skip


def _layer(**state):
    return _module({"_modules": {"x": Call("torch.nn.modules.module", "Module", state=state)}})


_TYPED = name("torch._tensor", "_rebuild_from_type_v2")
BOMBS = {
    "laughs as a tuple": LAUGHS,
    "laughs as a key": Raw(b"}" + LAUGHS.code + b"Ns"),
    "laughs as a set": Raw(b"\x8f(" + LAUGHS.code + b"\x90"),
    "laughs as a frozen set": Raw(b"(" + LAUGHS.code + b"\x91"),
    "laughs as an ordered key": Call("collections", "OrderedDict", [(LAUGHS, 1)]),
    "laughs as a class": Call("torch._tensor", "_rebuild_from_type_v2", LAUGHS, None, (), {}),
    "laughs as a device": Call("torch", "device", LAUGHS),
    "laughs as a layout": Call("torch.serialization", "_get_layout", LAUGHS),
    "laughs as a path": Call("pathlib", "PosixPath", LAUGHS),
    "laughs as a class name": Call(
        "torch_utils.persistence", "_reconstruct_persistent_obj", {"class_name": LAUGHS, "state": {}}
    ),
    "laughs as an architecture": _layer(architecture=LAUGHS),
    "laughs as an activation": _layer(activation=LAUGHS),
    "laughs as a clamp": _layer(conv_clamp=LAUGHS),
    "laughs as a TensorFlow setting": _network([], architecture=LAUGHS),
    "laughs of lists as a TensorFlow setting": _network(
        [], architecture=doubled(b"]", again() + again() + b"\x86", 60)
    ),
    "laughs as an average": {"g_ema": {}, "latent_avg": LAUGHS},
    "laughs as a storage": Raw(ops(("storage", LAUGHS, "0", "cpu", 4)) + b"Q"),
    "laughs as a storage key": Raw(
        ops(("storage", Raw(name("torch", "FloatStorage")), LAUGHS, "cpu", 4)) + b"Q"
    ),
    "laughs as an array type": Call("numpy", "dtype", LAUGHS),
    "laughs as an encoding": Call("_codecs", "encode", "A", LAUGHS),
    "laughs as an element type": Call("torch._utils", "_rebuild_tensor_v3", *[LAUGHS] * 7),
    "list in a type": Call("torch._tensor", "_rebuild_from_type_v2", [], None, (), {}),
    "list as an architecture": _layer(architecture=[]),
    "list as an activation": _layer(activation=[1]),
    "dictionary as a TensorFlow setting": _network([], architecture={"a": 1}),
    "path that doubles": doubled(text("A" * 100), name("pathlib", "PosixPath") + PAIR + b"R", 40),
    "text encoded again and again": Raw(LONG_TEXT + b"q\x01(" + _ENCODED * 4_000 + b"l"),
    "arrays over one text": Raw(
        LONG_TEXT
        + b"q\x01("
        + _filled((250_000,), Raw(again())).code * 10_000
        + b"l"
    ),
    "lists copied again and again": Raw(
        b"](" + b"N" * 300_000 + b"eq\x01("
        + (name("torch.jit._pickle", "build_intlist") + again() + b"\x85R") * 4_000 + b"l"
    ),
    "dictionaries copied again and again": Raw(
        b"](" + b"".join(ops((i, 1)) for i in range(10_000)) + b"eq\x01("
        + (name("collections", "OrderedDict") + again() + b"\x85R") * 4_000 + b"l"
    ),
    "sets copied again and again": Raw(
        ops([str(i) for i in range(50_000)]) + b"q\x01("
        + (name("builtins", "set") + again() + b"\x85R") * 4_000 + b"l"
    ),
    "states copied again and again": Raw(
        ops({str(i): 1 for i in range(50_000)}) + b"q\x01("
        + (name("torch.nn.modules.module", "Module") + b")\x81" + again() + b"b") * 4_000 + b"l"
    ),
    "persistent states copied again and again": Raw(
        ops({"state": {str(i): 1 for i in range(50_000)}}) + b"q\x01("
        + (name("torch_utils.persistence", "_reconstruct_persistent_obj") + again() + b"\x85R") * 4_000 + b"l"
    ),
    "reconstructed again and again": Raw(
        ops({str(i): 1 for i in range(50_000)}) + b"q\x01("
        + (name("copyreg", "_reconstructor") + name("collections", "OrderedDict")
           + name("builtins", "dict") + again() + b"\x87R") * 4_000 + b"l"
    ),
    "modules in a loop of one": _looped_modules(1),
    "modules in a loop of two": _looped_modules(2),
    "modules in a loop of ten": {"G_ema": _looped_modules(10)},
    "networks in a loop of two": _looped_networks(2),
    "networks in a loop of ten": [None, None, _looped_networks(10)],
    "modules along exponential paths": {"G_ema": doubled(
        _module({}) and ops(_module({"_modules": {}})),
        ops(_module({"_modules": {"a": Raw(again()), "b": Raw(again())}})), 28,
    )},
    "modules with long names": {"G_ema": doubled(
        ops(_module({"_modules": {}})), ops(_module({"_modules": {"n" * 20_000: Raw(again())}})), 30,
    )},
    "list in itself": Raw(b"]q\x01" + again() + b"a"),
    "dictionary in itself": Raw(b"}q\x01" + text("g_ema") + again() + b"s"),
    "state dictionary in itself": Raw(b"}q\x01" + text("state_dict") + again() + b"s"),
    "record in itself": Raw(_MODULE + b")\x81q\x01" + ops({"a": Raw(again())}) + b"b"),
    "tuple in its list": Raw(b"]q\x01" + again() + b"\x85a"),
    "lists nested deep": Raw(b"]" * 100_000 + b"a" * 99_999),
    "tuples nested deep": Raw(b")" + b"\x85" * 100_000),
    "dictionaries nested deep": Raw(b"}K\x01" * 100_000 + b"N" + b"s" * 100_000),
    "records nested deep": doubled(_MODULE + b")\x81", _MODULE + b")\x81}" + text("a") + again() + b"sb", 30_000),
    "tuple nested deep as a key": Raw(b"})" + b"\x85" * 100_000 + b"Ns"),
    "typed tensors nested deep": Raw(
        _TYPED + (b"(" + _TYPED + b"N") * 20_000 + b")" + b"}t" * 20_000 + b"R"
    ),
    "flood of no use": Raw(b"N0" * 1_500_000 + b"N"),
    "flood of marks": Raw(b"(" * 3_000_000),
    "flood of values": Raw(b"N" * 3_000_000),
    "flood of sets": Raw(b"\x8f" * 3_000_000),
    "flood of memos": Raw(b"N" + b"\x94" * 3_000_000),
    "flood of frames": Raw((b"\x95" + bytes(8)) * 2_500_000),
    "hash of integers": {i << 40: 1 for i in range(30_000)},
    "hash of large integers": {(i * ((1 << 61) - 1)): 1 for i in range(64)},
    "integer key of 60 bytes": {1 << 470: 1},
    "float key": {0.5: 1},
    "memo that is empty": Raw(b"h\x07"),
    "memo of negative number": Raw(b"Np-5\n0g-5\n"),
    "memo number of many digits": Raw(b"Np" + b"9" * 100_000 + b"\n"),
    "empty stack": Raw(b""),
    "pop of nothing": Raw(b"0"),
    "mark that is missing": Raw(b"Nt"),
    "mark as a value": Raw(b"("),
    "mark in a pair": Raw(b"N(\x86"),
    "append to a tuple": Raw(b")Na"),
    "items of a list": Raw(b"]NNs"),
    "items without a value": Raw(b"}(Nu"),
    "integer of many digits": Raw(b"I" + b"9" * 100_000 + b"\n"),
    "integer that is none": Raw(b"Iabc\n"),
    "long of many digits": Raw(b"L" + b"9" * 500_000 + b"L\n"),
    "float that is none": Raw(b"Fabc\n"),
    "float of many digits": Raw(b"F" + b"9" * 1_000_000 + b"\n"),
    "string with escapes": Raw(b"S'\\x41'\n"),
    "line without an end": Raw(b"V" + b"A" * (2 << 20)),
    "text that is no UTF-8": Raw(b"X\x02\x00\x00\x00\xff\xff"),
    "text of surrogates": {"\ud800\udfff": 1},
    "name of surrogates": Raw(name("\ud800", "\udfff")),
    "names of terminals": {"\x1b[2J\x07\r\n\u202e": 1},
    "long name": {"n" * 3_000_000: 1},
    "many names": {f"name {i}": 1 for i in range(100_000)},
    "long encoder type": {
        "state_dict": {"encoder.styles.0.x": _filled((1,), bytes(4)),
                       "encoder.input_layer.0.weight": _filled((1, 3), bytes(12))},
        "opts": {"encoder_type": "x" * 1_000_000}},
    "laughs as an encoder type": {
        "state_dict": {"encoder.styles.0.x": _filled((1,), bytes(4)),
                       "encoder.input_layer.0.weight": _filled((1, 3), bytes(12))},
        "opts": {"encoder_type": LAUGHS}},
    "laughs as a data set": {
        "state_dict": {"encoder.styles.0.x": _filled((1,), bytes(4)),
                       "encoder.input_layer.0.weight": _filled((1, 3), bytes(12))},
        "opts": {"encoder_type": "Encoder4Editing", "dataset_type": LAUGHS}},
    "list as an encoder type": {
        "state_dict": {"encoder.styles.0.x": _filled((1,), bytes(4)),
                       "encoder.input_layer.0.weight": _filled((1, 3), bytes(12))},
        "opts": {"encoder_type": []}},
    "encoder of very many heads": {
        "state_dict": {"encoder.styles.1000000000.x": _filled((1,), bytes(4)),
                       "encoder.input_layer.0.weight": _filled((1, 3), bytes(12))},
        "opts": {"encoder_type": "Encoder4Editing", "start_from_latent_avg": False}},
    "encoder of a head with many digits": {
        "state_dict": {f"encoder.styles.{'9' * 5000}.x": _filled((1,), bytes(4)),
                       "encoder.input_layer.0.weight": _filled((1, 3), bytes(12))},
        "opts": {"encoder_type": "Encoder4Editing"}},
    "encoder whose first layer is a number": {
        "state_dict": {"encoder.styles.0.x": _filled((1,), bytes(4)),
                       "encoder.input_layer.0.weight": _filled((), bytes(4))}},
    "encoder whose average does not divide": {
        "state_dict": {"encoder.styles.0.x": _filled((1,), bytes(4)),
                       "encoder.input_layer.0.weight": _filled((1, 3), bytes(12))},
        "opts": {"encoder_type": "Encoder4Editing"}, "latent_avg": _filled((7,), bytes(28))},
    "mapper of a layer with many digits": {
        f"mapper_{'9' * 5000}.mapping.1.weight": _filled((1, 1), bytes(4))},
    "mapper of very many layers": {
        f"mapper_{i}.mapping.1.weight": _filled((1, 1), bytes(4)) for i in range(5_000)},
    "mapper whose width is no axis": {"mapping.mapping.1.weight": _filled((), bytes(4))},
    "clip without axes": {"text_projection": _filled((), bytes(4))},
    "average without a row": {
        "g_ema": {"synthesis.b4.const": _filled((1,), bytes(4))}, "latent_avg": _filled((0, 4), b"")},
    "TensorFlow array of other axes": _network([("mapping/Dense0/weight", _filled((1, 1, 1), bytes(4)))]),
    "TensorFlow constant without axes": _network([("synthesis/4x4/Const/const", _filled((), bytes(4)))]),
    "TensorFlow noise without axes": _network(
        [("synthesis/noise0", _filled((), bytes(4))), ("synthesis/noise1", _filled((), bytes(4))),
         ("synthesis/4x4/Conv/weight", _filled((1, 1, 1, 1), bytes(4)))]),
    "TensorFlow side of many digits": _network(
        [(f"synthesis/{'9' * 5000}x1/Conv1/weight", _filled((1, 1, 1, 1), bytes(4)))]),
    "TensorFlow clamp that is no number": _network(
        [("mapping/Dense0/bias", _filled((1,), bytes(4)))], conv_clamp=float("nan"), mapping_lrmul=1 << 500),
    "array of another length": _filled((1 << 40,), bytes(4)),
    "array of text": _filled((1,), bytes(4), Call("numpy", "dtype", "O8")),
    "array of records": _filled((1,), bytes(4), Call("numpy", "dtype", "f,")),
    "array of negative shape": _filled((-1, -1), bytes(4)),
    "array of 65 axes": _filled((1,) * 65, bytes(4)),
    "array that is not filled": {"g_ema": {"input.input": _ARRAY}},
    "array filled with a list": Raw(ops(_ARRAY) + ops([1]) + b"b"),
    "scalar of another length": Call("numpy.core.multiarray", "scalar", _FLOAT, b"x"),
    "device that is a list": Call("torch", "device", [1] * 5, "x" * 100_000),
    "size that is a list": Call("torch", "Size", [1 << 60] * 100_000),
}  # fmt: skip

_DECLARED = {
    "BINBYTES": b"B\xff\xff\xff\xff", "SHORT_BINBYTES": b"C\xff", "BINBYTES8": b"\x8e" + (1 << 60).to_bytes(8, "little"),
    "BINBYTES8 of all bits": b"\x8e" + b"\xff" * 8, "BYTEARRAY8": b"\x96" + (1 << 60).to_bytes(8, "little"),
    "BINUNICODE": b"X\xff\xff\xff\xff", "SHORT_BINUNICODE": b"\x8c\xff",
    "BINUNICODE8": b"\x8d" + (1 << 60).to_bytes(8, "little"), "BINSTRING": b"T\xff\xff\xff\x7f",
    "BINSTRING of negative length": b"T\xff\xff\xff\xff", "SHORT_BINSTRING": b"U\xff",
    "LONG1": b"\x8a\xff", "LONG4": b"\x8b\xff\xff\xff\x7f", "LONG4 of negative length": b"\x8b\xff\xff\xff\xff",
    "FRAME": b"\x95" + (1 << 60).to_bytes(8, "little"), "PROTO": b"\x80\xff", "LONG_BINGET": b"j\xff\xff\xff\xff",
    "LONG_BINPUT": b"Nr\xff\xff\xff\xff",
}  # fmt: skip
BOMBS |= {f"declared length of {opcode}": Raw(code) for opcode, code in _DECLARED.items()}
