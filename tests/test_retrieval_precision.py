"""Rounding to few bits, the process-wide setting of products, and which precision is taken."""
import pytest
import torch

from processor.retrieval.search.precision import PRECISIONS, PROBE, choose

NAMES = sorted(PRECISIONS)


def all_magnitudes():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator) * 10.0 ** (torch.rand(20_000, generator=generator) * 40 - 20)
    return torch.cat([values, torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-126, 1 + 2.0**-11, 1 + 3 * 2.0**-11])])


@pytest.mark.parametrize(("name", "bits"), [("tf32", 10), ("bf16", 7)])
def test_rounding_keeps_the_leading_bits_and_moves_by_half_a_step_at_most(name, bits):
    values = all_magnitudes()
    before = values.clone()
    rounded = PRECISIONS[name].round(values)
    assert not (rounded.view(torch.int32) & (2 ** (23 - bits) - 1)).any()
    assert ((rounded.double() - values.double()).abs() <= values.double().abs() * 2.0 ** -(bits + 1)).all()
    assert torch.equal(PRECISIONS[name].round(rounded), rounded)
    assert torch.equal(PRECISIONS[name].round(-values), -rounded)
    assert torch.equal(values, before)


@pytest.mark.parametrize(("name", "bits"), [("tf32", 10), ("bf16", 7)])
def test_halves_are_rounded_to_even(name, bits):
    step = 2.0**-bits
    halves = torch.tensor([1 + step / 2, 1 + 3 * step / 2, 1 + 5 * step / 2, 2 - step / 2])
    expected = torch.tensor([1, 1 + 2 * step, 1 + 2 * step, 2])
    assert torch.equal(PRECISIONS[name].round(halves), expected)
    assert torch.equal(PRECISIONS[name].round(-halves), -expected)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_exact_in_the_product_and_sum_to_the_value(name):
    values = all_magnitudes().abs().clamp(min=1e-18)  # squared norms; below, a piece would be denormal
    pieces = PRECISIONS[name].pieces(values)
    assert torch.equal(sum(piece.double() for piece in pieces), values.double())
    for piece in pieces:
        assert torch.equal(PRECISIONS[name].round(piece), piece)


def test_products_leave_the_process_setting_as_it_was():
    """Also if two are under way and the first ends first, as with the blocks of two models in turn."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    torch.set_float32_matmul_precision("medium")
    try:
        first, second = PRECISIONS["float32"].products(cpu), PRECISIONS["tf32"].products(cuda)
        first.__enter__()
        assert torch.get_float32_matmul_precision() == "highest"
        second.__enter__()
        assert torch.get_float32_matmul_precision() == "high"
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"  # whoever goes on asks again before a product
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "medium"
        with PRECISIONS["tf32"].products(cpu):
            assert torch.get_float32_matmul_precision() == "highest"  # a CPU has no TF32
        with pytest.raises(RuntimeError), PRECISIONS["tf32"].products(cpu):
            torch.zeros(2) @ torch.zeros(3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("low", "expected"), [(0.9, "float32"), (0.51, "float32"), (0.49, "bf16"), (0.1, "bf16")])
def test_auto_takes_a_low_precision_if_it_is_twice_as_fast(monkeypatch, low, expected):
    monkeypatch.setattr("processor.retrieval.search.precision.product_seconds",
                        lambda precision, *shape: {"float32": 1.0, "bf16": low}[precision.name])
    chosen, seconds = choose("auto", torch.device("cpu"), 8, 8)
    assert chosen is PRECISIONS[expected]
    assert seconds == {"float32": 1.0, "bf16": low}[expected]


def test_auto_tells_a_processor_without_bfloat16_by_a_small_product(monkeypatch):
    asked = []

    def seconds(precision, device, dim, rows):
        asked.append((precision.name, rows))
        return {"float32": 1.0, "bf16": 7.0}[precision.name]

    monkeypatch.setattr("processor.retrieval.search.precision.product_seconds", seconds)
    assert choose("auto", torch.device("cpu"), 8, 1024)[0] is PRECISIONS["float32"]
    assert ("bf16", 1024) not in asked
    assert ("bf16", PROBE) in asked
