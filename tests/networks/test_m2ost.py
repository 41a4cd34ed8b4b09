"""M2OST against its description, worked out slowly in numpy, one token and one head at a time."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest
import torch

from stpredict.errors import ModelFileError
from stpredict.networks import architecture_config, architecture_views, build_network, make_network, network_parameters
from stpredict.networks.m2ost import VIEWS, M2OSTConfig

TINY = M2OSTConfig(
    n_genes=5, views=VIEWS, channels=8, depth=2, heads=2, head_dim=3, cross_heads=3, patch_px=32, link="softplus"
)


def tiny_network(config=TINY):
    torch.manual_seed(0)
    network = make_network(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape))
    return network


def some_views(n=2, size=32):
    return np.random.default_rng(0).integers(0, 256, (n, 3, size, size, 3)).astype(np.uint8)


def test_it_has_the_papers_size():
    network = make_network(architecture_config("m2ost", n_genes=250))
    assert sum(parameter.numel() for parameter in network.parameters()) == 7_043_466
    assert [tuple(p.shape[1:]) for p in network.position_embeddings] == [(197, 192), (393, 192), (589, 192)]
    assert architecture_views("m2ost") == (1, 2, 4)
    assert architecture_views("m2ort-small") == architecture_views("dictionary") == (1,)


def linear(layer, x):
    out = layer.weight.detach().double().numpy() @ x
    return out if layer.bias is None else out + layer.bias.detach().double().numpy()


def normalise(layer, x):
    centred = x - x.mean()
    scaled = centred / np.sqrt((centred**2).mean() + 1e-5)
    return scaled * layer.weight.detach().double().numpy() + layer.bias.detach().double().numpy()


def gelu(x):
    return np.array([value * 0.5 * (1 + erf(value / sqrt(2))) for value in x])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def tokens_of(image, side, token_px, embedding):
    """Of the middle square of `side` pixels, row by row; in each its pixels row by row, three colours each."""
    start = (len(image) - side) // 2
    tokens = []
    for top in range(start, start + side, token_px):
        for left in range(start, start + side, token_px):
            values = [
                image[y, x, colour] / 255
                for y in range(top, top + token_px)
                for x in range(left, left + token_px)
                for colour in range(3)
            ]
            x = gelu(linear(embedding.expand, normalise(embedding.norm, np.array(values))))
            tokens.append(normalise(embedding.norm_out, linear(embedding.project, x)))
    return tokens


def attend(queries, keys, values, heads):
    """What each of the queries finds, by heads that take equal parts of it."""
    found = []
    for query in queries:
        parts = []
        for h in range(heads):
            width = len(query) // heads
            own = slice(h * width, (h + 1) * width)
            scores = np.array([query[own] @ key[own] / sqrt(width) for key in keys])
            weight = np.exp(scores - scores.max())
            weight /= weight.sum()
            parts.append(sum(w * value[own] for w, value in zip(weight, values, strict=True)))
        found.append(np.concatenate(parts))
    return found


def encode(block, levels, config):
    mixed = []
    for tokens, to_qkv, out in zip(levels, block.token_mixing.qkv, block.token_mixing.out, strict=True):
        q, k, v = zip(*(np.split(linear(to_qkv, token), 3) for token in tokens), strict=True)
        found = attend(q, k, v, config.heads)
        mixed.append([token + linear(out, x) for token, x in zip(tokens, found, strict=True)])
    mlp = block.level_mlp
    levels = [
        [token + gelu(linear(mlp.expand, gelu(linear(mlp.squeeze, normalise(mlp.norm, token))))) for token in tokens]
        for tokens in mixed
    ]
    cross = block.cross_level_mixing
    even = [[normalise(cross.norm, token) for token in tokens] for tokens in levels]
    levels = []
    for own in range(3):
        q = [linear(cross.q[own], token) for token in even[own]]
        found = [
            attend(q, [linear(cross.k[o], t) for t in even[o]], [linear(cross.v[o], t) for t in even[o]],
                   config.cross_heads)
            for o in range(3) if o != own
        ]  # fmt: skip
        levels.append([linear(cross.out[own], np.concatenate(pair)) for pair in zip(*found, strict=True)])
    channel = block.channel_mixing
    means = np.concatenate([np.mean(tokens, axis=0) for tokens in levels])
    weight = sigmoid(linear(channel.expand, gelu(linear(channel.squeeze, normalise(channel.norm, means)))))
    return [[token * w + token for token in tokens] for tokens, w in zip(levels, np.split(weight, 3), strict=True)]


def test_it_computes_what_the_description_says():
    network, views = tiny_network(), some_views()
    whole, half, quarter = network.patch_embeddings
    expected = []
    for first, second, third in views.astype(float):
        levels = [
            tokens_of(first, 32, 16, whole),
            tokens_of(second, 16, 8, half) + tokens_of(second, 32, 16, whole),
            tokens_of(third, 8, 4, quarter) + tokens_of(third, 16, 8, half) + tokens_of(third, 32, 16, whole),
        ]
        levels = [
            list(np.vstack([network.cls_token[0].detach(), *tokens]) + position[0].detach().double().numpy())
            for tokens, position in zip(levels, network.position_embeddings, strict=True)
        ]
        for block in network.encoders:
            levels = encode(block, levels, TINY)
        joined = np.concatenate([normalise(network.norm, tokens[0]) for tokens in levels])
        expected.append(np.log1p(np.exp(linear(network.head, joined))))
    with torch.inference_mode():
        output = network(torch.from_numpy(views))
    np.testing.assert_allclose(output, expected, rtol=2e-5, atol=2e-5)
    assert np.ptp(expected, axis=0).min() > 1e-3  # the spots differ, so agreeing says something


def test_every_view_and_its_centre_matter():
    network, views = tiny_network(), some_views(1)
    with torch.inference_mode():
        before = network(torch.from_numpy(views))
        for view in range(3):
            for place in ((0, 0), (16, 16)):
                changed = views.copy()
                changed[0, view, place[0], place[1]] ^= 255
                assert not torch.allclose(network(torch.from_numpy(changed)), before, atol=1e-6)


def test_the_unused_norm_is_never_trained():
    network = tiny_network().train()
    network(torch.from_numpy(some_views())).sum().backward()
    untouched = {name.split(".", 2)[2] for name, p in network.named_parameters() if p.grad is None}
    assert untouched == {"unused_norm.weight", "unused_norm.bias"}
    assert not any(p.requires_grad for name, p in network.named_parameters() if "unused_norm" in name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_networks_take_uint8_and_give_float32(dtype):
    network, views = tiny_network(), torch.from_numpy(some_views())
    with torch.inference_mode():
        reference = network(views)
        output = network.cast(dtype)(views)
    assert output.dtype == torch.float32
    assert abs(output - reference).max() < 0.1 * reference.std(dim=0).max() + 0.05


def test_its_parameters_build_it_again_and_others_are_refused():
    parameters = network_parameters(TINY)
    assert build_network(parameters).config == TINY
    assert build_network({**parameters, "views": [1, 2, 4]}).state_dict().keys() == tiny_network().state_dict().keys()
    for wrong in ({"views": [1, 2]}, {"views": [1, 4, 2]}, {"patch_px": 40}, {"token_px": 2, "patch_px": 32}):
        with pytest.raises(ModelFileError, match="does not describe a network"):
            build_network({**parameters, **wrong})
    with pytest.raises(ModelFileError, match="views"):
        build_network({key: value for key, value in parameters.items() if key != "views"})
    with pytest.raises(ModelFileError, match="views"):
        build_network({"n_genes": 5, "views": [1, 2, 4]})  # an M2ORT's
