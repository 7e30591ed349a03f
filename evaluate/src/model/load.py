"""Loads this model folder into PyTorch. Needs torch and safetensors; `load_timm` needs timm.

    from load import load; logits = load()(images)          # float [batch, 3, height, width], RGB

Images are normalised as config.json says: (pixel / 255 - mean) / std. Of an int8 model, the f32 model that it was made
of is loaded where that is in the folder beside it; otherwise its integers become floats.
"""

import json
from functools import partial, reduce
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hard_swish": nn.Hardswish, "swish": nn.SiLU}
_json = lambda path: json.loads(path.read_text(encoding="utf-8"))


def _module(node):
    """The torch module of a node; None for sums and products."""
    op, sizes = node["op"], lambda *names: [node[name] for name in names]
    if op == "average_pool":
        # Zeros before the first row and column count, pixels behind the last ones do not.
        zeros = nn.ZeroPad2d((node.get("padding", 0), 0) * 2)
        return nn.Sequential(zeros, nn.AvgPool2d(node["window"], ceil_mode=True, count_include_pad=False))
    others = {**ACTIVATIONS, "hard_sigmoid": nn.Hardsigmoid, "global_average_pool": lambda: nn.AdaptiveAvgPool2d(1)}
    convolution = ("in", "out", "kernel", "stride", "padding")
    others["convolution"] = lambda: nn.Conv2d(*sizes(*convolution), groups=node["groups"], bias=node["bias"])
    others["batch_norm"] = lambda: nn.BatchNorm2d(*sizes("out", "epsilon"))
    others["linear"] = lambda: nn.Linear(*sizes("in", "out"))
    others["max_pool"] = lambda: nn.MaxPool2d(*sizes("window", "stride", "padding"))
    return others[op]() if op in others else None


class Network(nn.Module):
    """Runs the nodes of graph.json. Modules with tensors have the names of the tensors, which are timm's."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes = nodes
        for index, node in enumerate(nodes):
            node["module"] = node.get("name", f"{node['op']}_{index}")
            if (module := _module(node)) is not None:
                *parents, name = node["module"].split(".")
                inside = lambda place, parent: place._modules.setdefault(parent, nn.Module())
                reduce(inside, parents, self).add_module(name, module)

    def forward(self, x):
        values = []
        for node in self.nodes:
            op, inputs = node["op"], [values[index] for index in node["inputs"]]
            if op in ("add", "gate"):
                x = inputs[0] + inputs[1] if op == "add" else inputs[0] * inputs[1]
            elif op != "input":
                x = self.get_submodule(node["module"])(inputs[0].flatten(1) if op == "linear" else inputs[0])
            values.append(x)
        return x


def _source(folder):
    """The folder of the f32 model that an int8 model was made of, if it is beside it; otherwise the folder itself."""
    folder = Path(folder).resolve()
    config = _json(folder / "config.json")
    f32 = folder.parent / config.get("quantisation", {}).get("f32_model", folder.name)
    there = all((f32 / name).exists() for name in ("config.json", "graph.json", "model.safetensors"))
    return f32 if there and _json(f32 / "config.json")["network"] == config["network"] else folder


def _with_weights(module, folder):
    """The module with the tensors of model.safetensors, as f32, ready to evaluate."""
    tensors = {name: tensor.float() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
    for node in getattr(module, "nodes", ()):
        if (scales := tensors.pop(f"{node.get('name')}.scales", None)) is not None:
            tensors[f"{node['name']}.weight"].transpose(0, -1).mul_(scales)
            tensors[f"{node['name']}.bias"].mul_(node["input_scale"] * scales)
    shapes = lambda state: {k: v.shape for k, v in state.items() if "num_batches" not in k}
    if shapes(module.state_dict()) != shapes(tensors):
        raise ValueError(f"{folder}: the tensors of model.safetensors are not those of {type(module).__name__}")
    module.load_state_dict(tensors, strict=False)
    return module.eval()


def load(folder="."):
    """The model in plain torch modules."""
    folder = _source(folder)
    return _with_weights(Network(_json(folder / "graph.json")["nodes"]), folder)


def load_timm(folder="."):
    """The model in timm's MobileNetV3 or EfficientNet class; ValueError where timm has no such architecture."""
    from timm.models import _efficientnet_blocks as blocks, _efficientnet_builder as builder, efficientnet, mobilenetv3

    folder = _source(folder)
    network = _json(folder / "config.json")["network"]
    stages, stem, feature, hidden = (network.get(part) for part in ("stages", "stem", "feature", "hidden_channels"))
    code = {"relu": "re", "relu6": "r6", "hard_swish": "hs", "swish": "sw"}
    strided = lambda block: block["residual"] and block["stride"] > 1
    known = lambda b: isinstance(b, dict) and "expand" in b and not b.get("projection") and not strided(b)
    if len(stem) != 1 or not feature or not all(known(block) for stage in stages for block in stage):
        raise ValueError(f"{folder}: timm has no such architecture")

    def text(block):
        expanded = f"ir_e{block['middle_channels'] / block['in_channels']}" if block["expand"] else "ds"
        size = f"_r1_k{block['kernel']}_s{block['stride']}_c{block['out_channels']}"
        others = ("_se0.25" if block["squeeze_excite"] else "") + ("" if block["residual"] else "_noskip")
        return f"{expanded}{size}{others}_n{code[block['activation']]}"

    texts = [[text(block) for block in stage] for stage in stages]
    gate = dict(gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=builder.round_channels)
    options = dict(num_classes=network["classes"], stem_size=stem[0]["out_channels"], fix_stem=True, round_chs_fn=int)
    options.update(act_layer=ACTIVATIONS[stem[0]["activation"]], se_layer=partial(blocks.SqueezeExcite, **gate))
    options.update(norm_layer=partial(nn.BatchNorm2d, eps=network["batch_norm_epsilon"]))
    texts += [[f"cn_r1_k1_s1_c{feature['out_channels']}_n{code[feature['activation']]}"]] if hidden else []
    head = dict(num_features=hidden, head_bias=False) if hidden else dict(num_features=feature["out_channels"])
    kind = mobilenetv3.MobileNetV3 if hidden else efficientnet.EfficientNet
    module = kind(builder.decode_arch_def(texts), **head, **options)
    module.conv_stem.stride = (stem[0]["stride"],) * 2
    return _with_weights(module, folder)
