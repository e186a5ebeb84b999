"""The picture of sensitivities: well-formed, self-contained, nothing outside of it, names as they are."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from gossamer.sensitivity import LayerCurve, Sensitivities
from gossamer.sensitivity.heat_map import heat_map, rise_text, shortened

SVG = "{http://www.w3.org/2000/svg}"


def made(names: list[str]) -> Sensitivities:
    kinds = (("sparsity", (0.5, 0.9)), ("bits", (2, 4, 8)), ("rank", (0.25,)))
    curves = [
        LayerCurve(name, kind, (4, 1000), 1, tuple((level, 10.0 ** (i - level)) for level in levels))
        for kind, levels in kinds
        for i, name in enumerate(names)
    ]
    return Sensitivities("kl", 0.0, tuple(curves))


@pytest.mark.parametrize("count", [1, 7, 90])
def test_everything_lies_within_the_picture_and_nothing_comes_from_outside(count: int) -> None:
    text = heat_map(made([f"model.layers.{i}.self_attn.q_proj.weight" for i in range(count)]), "net.safetensors")
    root = ElementTree.fromstring(text)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert not re.search(r"href|url\(|<script|<style|<image", text)
    for node in root.iter(f"{SVG}rect"):
        x, y = float(node.get("x", 0)), float(node.get("y", 0))
        assert 0 <= x <= x + float(node.get("width", 0)) <= width
        assert 0 <= y <= y + float(node.get("height", 0)) <= height
    for node in root.iter(f"{SVG}text"):
        said = "".join(node.itertext())
        size = float(node.get("font-size", 0)) * 0.62 * len(said.split("\n")[-1])
        x = float(node.get("x", 0))
        left = {"start": x, "middle": x - size / 2, "end": x - size}[node.get("text-anchor", "start")]
        if not len(node):  # with a hint the text counts twice
            assert left > -2
            assert left + size < width + 2
    cells = sum(6 for _ in range(count))
    assert len(list(root.iter(f"{SVG}rect"))) == 1 + cells + 30


def test_names_are_escaped_and_strange_characters_do_no_harm() -> None:
    odd = 'a<b>&"c"\x00\x1b[31m\ud800.weight'
    root = ElementTree.fromstring(heat_map(made([odd, "x" * 500]), 'the "<title>" & more'))
    texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    assert any(text.startswith('a<b>&"c"\ufffd') for text in texts)
    assert 'Sensitivity of the "<title>" & more' in "".join(texts)


def test_infinite_missing_and_negative_rises_are_drawn() -> None:
    curves = (
        LayerCurve("a", "sparsity", (2, 2), 1, ((0.5, -0.25), (0.9, math.inf))),
        LayerCurve("b", "sparsity", (2, 2), 1, ((0.5, 0.0),)),
    )
    root = ElementTree.fromstring(heat_map(Sensitivities("loss", 1.0, curves), "net"))
    texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    assert {"-0.250", "∞", "≈0", "–"} <= set(texts)


def test_darker_is_worse() -> None:
    points = tuple((level, 10.0**level) for level in (2, 3, 4, 5, 6))
    text = heat_map(Sensitivities("loss", 1.0, (LayerCurve("a", "bits", (2, 2), 1, points),)), "net")
    fills = re.findall(r'fill="#(\w{6})"', text)[:5]
    light = [sum(bytes.fromhex(fill)) for fill in fills]
    assert all(a > b for a, b in pairwise(light))


def test_numbers_and_names_fit_their_places() -> None:
    for exponent in range(-30, 30):
        for sign in (1, -1):
            for digit in (1.0, 4.44444, 9.99999):
                assert len(rise_text(sign * digit * 10.0**exponent)) <= 6 + (sign < 0)
    assert [len(shortened("abc" * n, 20)) for n in (1, 6, 7, 100)] == [3, 18, 20, 20]
