"""Loads this model folder into PyTorch. Needs torch and safetensors; `load_timm` needs timm.

    from load import load
    logits = load()(images)             # float [batch, 3, height, width], RGB

Images are normalised as config.json says: (pixel / 255 - mean) / std. Integers of an int8 model become floats.
"""

import json
from functools import partial, reduce
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hard_swish": nn.Hardswish, "swish": nn.SiLU}


def _module(node):
    """The torch module of a node; None for sums and products."""
    op = node["op"]
    if op == "convolution":
        size = (node["in"], node["out"], node["kernel"], node["stride"], node["padding"])
        return nn.Conv2d(*size, groups=node["groups"], bias=node["bias"])
    if op == "batch_norm":
        return nn.BatchNorm2d(node["out"], eps=node["epsilon"])
    if op == "linear":
        return nn.Linear(node["in"], node["out"])
    if op == "average_pool":
        # Zeros before the first row and column count, pixels behind the last ones do not.
        zeros = nn.ZeroPad2d((node.get("padding", 0), 0) * 2)
        return nn.Sequential(zeros, nn.AvgPool2d(node["window"], ceil_mode=True, count_include_pad=False))
    if op == "max_pool":
        return nn.MaxPool2d(node["window"], node["stride"], node["padding"])
    others = {**ACTIVATIONS, "hard_sigmoid": nn.Hardsigmoid, "global_average_pool": lambda: nn.AdaptiveAvgPool2d(1)}
    return others[op]() if op in others else None


class Network(nn.Module):
    """Runs the nodes of graph.json. Modules with tensors have the names of the tensors, which are timm's."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes = nodes
        for index, node in enumerate(nodes):
            node["module"] = node.get("name", f"{node['op']}_{index}")
            module = _module(node)
            if module is not None:
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


def _with_weights(module, folder):
    """The module with the tensors of model.safetensors, as f32, ready to evaluate."""
    tensors = {name: tensor.float() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
    for node in getattr(module, "nodes", ()):
        if (scales := tensors.pop(f"{node.get('name')}.scales", None)) is not None:
            weight, bias = (tensors[f"{node['name']}.{part}"] for part in ("weight", "bias"))
            weight *= scales.view(-1, *[1] * (weight.dim() - 1))
            bias *= node["input_scale"] * scales
    states = module.state_dict(), tensors
    shapes = [{k: v.shape for k, v in state.items() if "num_batches" not in k} for state in states]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{folder}: the tensors of model.safetensors are not those of {type(module).__name__}")
    module.load_state_dict(tensors, strict=False)
    return module.eval()


def load(folder="."):
    """The model in plain torch modules."""
    return _with_weights(Network(json.loads((Path(folder) / "graph.json").read_text())["nodes"]), folder)


def load_timm(folder="."):
    """The model in timm's MobileNetV3 or EfficientNet class; ValueError where timm has no such architecture."""
    from timm.models import _efficientnet_blocks as blocks, _efficientnet_builder as builder, efficientnet, mobilenetv3

    network = json.loads((Path(folder) / "config.json").read_text())["network"]
    stages, stem, feature, hidden = (network.get(part) for part in ("stages", "stem", "feature", "hidden_channels"))
    code = {"relu": "re", "relu6": "r6", "hard_swish": "hs", "swish": "sw"}

    def known(block):
        mobile = isinstance(block, dict) and "expand" in block and not block.get("projection")
        return mobile and not (block["residual"] and block["stride"] > 1)

    if len(stem) != 1 or not feature or not all(known(block) for stage in stages for block in stage):
        raise ValueError(f"{folder}: timm has no such architecture")

    def text(block):
        expanded = f"ir_e{block['middle_channels'] / block['in_channels']}" if block["expand"] else "ds"
        squeezed = "_se0.25" if block["squeeze_excite"] else ""
        alone = "" if block["residual"] else "_noskip"
        size = f"_r1_k{block['kernel']}_s{block['stride']}_c{block['out_channels']}"
        return f"{expanded}{size}{squeezed}{alone}_n{code[block['activation']]}"

    texts = [[text(block) for block in stage] for stage in stages]
    gate = dict(gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=builder.round_channels)
    options = dict(num_classes=network["classes"], stem_size=stem[0]["out_channels"], fix_stem=True, round_chs_fn=int)
    options.update(act_layer=ACTIVATIONS[stem[0]["activation"]], se_layer=partial(blocks.SqueezeExcite, **gate))
    options.update(norm_layer=partial(nn.BatchNorm2d, eps=network["batch_norm_epsilon"]))
    if hidden:
        texts.append([f"cn_r1_k1_s1_c{feature['out_channels']}_n{code[feature['activation']]}"])
    head = dict(num_features=hidden, head_bias=False) if hidden else dict(num_features=feature["out_channels"])
    kind = mobilenetv3.MobileNetV3 if hidden else efficientnet.EfficientNet
    module = kind(builder.decode_arch_def(texts), **head, **options)
    module.conv_stem.stride = (stem[0]["stride"],) * 2
    return _with_weights(module, folder)
