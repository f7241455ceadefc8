"Products against independent arithmetic, and stored formats against ModelOpt's own packing."
import numpy as np
import pytest
import torch

from small import rel
from tqcook import formats, linears
from tqcook.core import CookError


def nearest_e4m3(x):
    "Round to nearest, ties to even, by searching the table of all values."
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    grid = np.unique(values[~np.isnan(values)])
    code = {float(v): b for b, v in enumerate(values) if b < 127}
    out = []
    for v in np.asarray(x, np.float64).clip(-448, 448):
        d = np.abs(grid - v)
        out.append(min(grid[d == d.min()], key=lambda g: code[abs(float(g))] & 1))
    return np.array(out, np.float32)


def test_e4m3_rounds_to_nearest_even_and_saturates():
    odd = torch.tensor([0., 17., 19., 2**-10, 3 * 2**-10, 1e-5, 448., 449., 464., 465., 1e6, -1e6])
    x = torch.cat([torch.randn(500, generator=torch.Generator().manual_seed(0)) * 30, odd])
    assert np.array_equal(formats.quantize_e4m3(x, 1.).float().numpy(), nearest_e4m3(x.numpy()))


@pytest.mark.parametrize('m,k,n', [(1, 16, 16), (3, 48, 80), (130, 256, 64), (5, 10, 7)])
@pytest.mark.parametrize('rowwise', [False, True])
def test_fp8_mm(m, k, n, rowwise):
    g = torch.Generator().manual_seed(0)
    a, w = (torch.randn(*s, generator=g).to(torch.float8_e4m3fn) for s in ((m, k), (n, k)))
    sa, sw = torch.tensor(.3), torch.tensor(.7)
    if rowwise:
        sa, sw = torch.rand(m, 1, generator=g), torch.rand(n, generator=g)
    bias = torch.randn(n, generator=g).bfloat16()
    want = (a.double() * sa.double()) @ (w.double() * sw.double().reshape(-1, 1)).T + bias.double()
    assert rel(linears.fp8_mm(a, w, sa, sw, bias), want) < 3e-3


@pytest.mark.parametrize('m,k,n', [(1, 8, 8), (17, 100, 33), (64, 4096, 24)])
def test_int8_mm_is_exact(m, k, n):
    g = torch.Generator().manual_seed(0)
    a, w = (torch.randint(-128, 128, s, generator=g, dtype=torch.int8) for s in ((m, k), (n, k)))
    assert torch.equal(linears.int8_mm(a, w).long(), a.long() @ w.long().T)


def test_a_token_of_zeros_is_zero_not_nan():
    x = torch.zeros(3, 32).bfloat16()
    x[1] = 1
    int8 = dict(weight=torch.ones(16, 32, dtype=torch.int8), weight_scale=torch.ones(16))
    fp8 = dict(weight=torch.ones(16, 32).to(torch.float8_e4m3fn), weight_scale=torch.tensor(1.))
    for y in (linears.quantized_linear('int8_sq', x, int8, 'token'), linears.quantized_linear('fp8_rowwise', x, fp8),
              linears.quantized_linear('fp8', torch.zeros_like(x), fp8, 'tensor')):
        assert torch.isfinite(y).all() and (y[0] == 0).all()


def test_int8_dynamic_scale_follows_smoothing():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(20, 64, generator=g).bfloat16(), torch.randn(32, 64, generator=g)
    x[:, 3] *= 100
    smooth = 1 / x.float().abs().amax(0).sqrt()
    s = (w / smooth).abs().amax(1) / 127
    t = dict(weight=(w / smooth / s[:, None]).round().to(torch.int8), weight_scale=s, pre_quant_scale=smooth)
    assert rel(linears.quantized_linear('int8_sq', x, t, 'token'), x.double() @ w.double().T) < .02


def test_int4_unpacks_what_modelopt_packs():
    from modelopt.torch.export.quant_utils import pack_int4_in_uint8
    w = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    s = w.reshape(32, 2, 128).abs().amax(-1) / 7
    want = (w.reshape(32, 2, 128) / s[..., None]).round().clamp(-8, 7) * s[..., None]
    stored = dict(weight=pack_int4_in_uint8(w, s, 128), weight_scale=s)
    assert torch.equal(formats.dequantize('int4_awq', stored), want.reshape(32, 256))


def test_nvfp4_unpacks_what_modelopt_packs():
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    w = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    q, scale, scale2 = NVFP4QTensor.quantize(w.clone(), 16)
    want = q.dequantize(dtype=torch.float32, scale=scale, double_scale=scale2, block_sizes={-1: 16})
    got = formats.dequantize('nvfp4', dict(weight=q._quantized_data, weight_scale=scale, weight_scale_2=scale2))
    assert torch.allclose(got, want, rtol=1e-6) and .05 < rel(got, w) < .15


def test_block_scales_on_ragged_edges():
    w = torch.ones(200, 130).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1., 2.], [3., 4.]]).reshape(2, 1, 2, 1)
    got = formats.dequantize('fp8_block', dict(weight=w, weight_scale=scale))
    assert got[127, 127] == 1 and got[0, 129] == 2 and got[199, 0] == 3 and got[128, 128] == 4
    with pytest.raises(CookError, match='block scales'):
        formats.dequantize('fp8_block', dict(weight=w, weight_scale=torch.ones(3, 2)))
