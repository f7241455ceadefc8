"Every code and every midpoint of every grid, in numpy and in PyTorch; ModelOpt's packing as the witness."
import numpy as np
import pytest

from tqcook import formats
from tqcook.core import CookError
from tqcook.formats import E4M3_MAX, FORMATS, STORAGES, code_values, values

torch = pytest.importorskip('torch')

GRIDS = ['e4m3', 'e5m2', 'e2m1', 'int8', 'int4']
TORCH = {'e4m3': torch.float8_e4m3fn, 'e5m2': torch.float8_e5m2, 'e8m0': torch.float8_e8m0fnu}


def by_definition(fmt):
    "Values by code as the OCP specifications define them, without ml_dtypes."
    exponent, mantissa, bias = {'e4m3': (4, 3, 7), 'e5m2': (5, 2, 15), 'e2m1': (2, 1, 1)}[fmt]
    out = []
    for code in range(2**(1 + exponent + mantissa)):
        m, e = code % 2**mantissa, code >> mantissa & 2**exponent - 1
        v = m * 2.**(1 - bias - mantissa) if e == 0 else (1 + m / 2**mantissa) * 2.**(e - bias)
        if fmt == 'e4m3' and code & 127 == 127 or fmt == 'e5m2' and code & 127 > 124:
            v = np.nan
        if fmt == 'e5m2' and code & 127 == 124:
            v = np.inf
        out.append(-v if code >> exponent + mantissa else v)
    return np.array(out, np.float32)


@pytest.mark.parametrize('fmt', ['e4m3', 'e5m2', 'e2m1'])
def test_every_code(fmt):
    want = by_definition(fmt)
    assert np.array_equal(code_values(fmt), want, equal_nan=True)
    finite = np.abs(want[np.isfinite(want)])
    assert FORMATS[fmt].max == finite.max() and FORMATS[fmt].tiny == finite[finite > 0].min()


@pytest.mark.parametrize('fmt', TORCH)
def test_every_code_in_torch(fmt):
    codes = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal(codes.view(TORCH[fmt]).float().numpy(), code_values(fmt), equal_nan=True)
    raw = codes.numpy()
    assert np.array_equal(formats.decode(raw, 'F8_' + fmt.upper()), code_values(fmt), equal_nan=True)


def test_integers_and_powers_of_two():
    assert values('int8').tolist() == list(range(-127, 128)) and values('int4').tolist() == list(range(-7, 8))
    assert code_values('int4').tolist() == [*range(8), *range(-8, 0)]
    assert values('e8m0').tolist() == [2.**e for e in range(-127, 128)] and np.isnan(code_values('e8m0')[255])


def cases(fmt, kind):
    "(x, what it rounds to): every value, every midpoint (to the even code) and its two neighbors, and what saturates."
    grid = values(fmt)
    middle = (grid[1:] + grid[:-1]) / 2
    if fmt.startswith('int'):
        odd = np.round(grid[1:]).astype(int) % 2 == 1
    else:
        magnitude = np.sort(np.unique(np.abs(grid)))
        odd = np.searchsorted(magnitude, np.abs(grid[1:])) % 2 == 1 # codes of magnitudes count up from 0
    even = np.where(odd, grid[:-1], grid[1:])
    at = middle.astype(kind)
    assert np.array_equal(at, middle) # midpoints are exact in this type
    top, inf = grid[-1], np.array(np.inf, kind)
    x = [grid, at, np.nextafter(at, inf), np.nextafter(at, -inf), [top * 1.01, -top * 3]]
    y = [grid, even, grid[1:], grid[:-1], [top, -top]]
    return np.concatenate(x).astype(kind), np.concatenate(y)


@pytest.mark.parametrize('kind', [np.float32, np.float64])
@pytest.mark.parametrize('fmt', GRIDS)
def test_every_midpoint(fmt, kind):
    x, want = cases(fmt, kind)
    assert np.array_equal(formats.round_to(x, fmt, FORMATS[fmt].max), want)
    assert np.array_equal(formats.round_to(x * kind(.25), fmt, FORMATS[fmt].max / 4), want / 4)


def test_ties_go_to_even():
    "The fault that this mends: ties went upwards, 17 -> 18 and 400 -> 416. (432: 448 is the even one.)"
    assert formats.round_to(np.array([17, 400, 432.]), 'e4m3', E4M3_MAX).tolist() == [16, 384, 448]


def test_every_midpoint_in_torch():
    x, want = cases('e4m3', np.float32)
    assert np.array_equal(formats.quantize_e4m3(torch.tensor(x), 1.).float().numpy(), want)
    assert np.array_equal(formats.round_e4m3(torch.tensor(x)).numpy(), want)
    x, want = cases('int8', np.float32)
    assert np.array_equal(formats.fake_int(torch.tensor(x), torch.tensor(127.)).numpy(), want)
    for storage in 'int8_wo', 'int4_awq', 'nvfp4', 'fp8', 'mxfp8':
        x, want = cases(STORAGES[storage].fmt, np.float32)
        n = -len(x) % 32
        row = torch.tensor(np.pad(x, (0, n)))[None].repeat(2, 1)
        one = {k: torch.full_like(s.float(), 1.) for k, s in formats.scales_of(storage, row).items()}
        if storage == 'mxfp8':
            one['weight_scale'] = torch.full((2, row.shape[1] // 32), 127, dtype=torch.uint8)
        if storage == 'int4_awq':
            one['weight_scale'] = torch.ones(2, 1)
        got = formats.dequantize(storage, formats.quantize(storage, row, one))
        assert np.array_equal(got.numpy()[1, :len(x)], want), storage


def test_a_quotient_rounds_once():
    "BF16 quotient, then E4M3, gives other codes for some weights; float32 gives the nearest ones."
    torch.manual_seed(0)
    w, s = torch.randn(256, 256).bfloat16(), torch.tensor(.0123)
    once = formats.quantize_e4m3(w, s).float().numpy()
    exact = formats.round_to(w.double().numpy() / float(s), 'e4m3', E4M3_MAX)
    twice = (w / s.bfloat16()).to(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(once, exact) and (twice != exact).mean() > .01


def test_packing_is_modelopts():
    quant_utils = pytest.importorskip('modelopt.torch.export.quant_utils')
    from modelopt.torch.quantization.qtensor import MXFP8QTensor, NVFP4QTensor
    torch.manual_seed(1)
    w = torch.randn(64, 256).bfloat16().float()
    w[3] = 0
    mine = formats.quantize('int4_awq', w)
    assert torch.equal(mine['weight'], quant_utils.pack_int4_in_uint8(w, mine['weight_scale'].clamp(min=1e-9), 128))
    mine, (q, scale, scale2) = formats.quantize('nvfp4', w), NVFP4QTensor.quantize(w, 16)
    live = torch.arange(64) != 3 # ModelOpt gives blocks of zeros a scale of its own
    assert torch.equal(mine['weight_scale'].float()[live], scale.float()[live])
    assert torch.equal(mine['weight_scale_2'], scale2)
    nibbles = lambda t: torch.stack([t & 7, t >> 4 & 7], -1)
    differ = nibbles(mine['weight'])[live] != nibbles(q._quantized_data)[live]
    assert differ.float().mean() < 1e-3 # a quotient by two scales rounds elsewhere now and then
    mine = formats.quantize('mxfp8', w)
    assert torch.equal(mine['weight_scale'][live], MXFP8QTensor.get_weights_scaling_factor(w)[live])
    theirs = MXFP8QTensor.quantize_with_scale(w, mine['weight_scale'])
    assert torch.equal(mine['weight'].view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize('storage', STORAGES)
@pytest.mark.parametrize('shape', [(128, 128), (130, 256), (256, 320)])
def test_there_and_back(storage, shape):
    torch.manual_seed(2)
    w = torch.randn(shape) * torch.logspace(-3, 1, shape[0])[:, None]
    if storage == 'int4_awq' and shape[1] % 128:
        with pytest.raises(CookError, match='block scales'):
            formats.quantize(storage, w)
        return
    t = formats.quantize(storage, w)
    back = formats.dequantize(storage, t)
    step = {'int8': 1 / 127, 'int4': 1 / 7, 'e4m3': 1 / 8, 'e2m1': 1 / 3}[STORAGES[storage].fmt]
    amax = formats._spread(formats._block_amax(w, STORAGES[storage].block), w.shape, STORAGES[storage].block)
    assert back.shape == w.shape and bool(((back - w).abs() <= step * amax).all())
    given = {k: v for k, v in t.items() if k != 'weight'}
    assert torch.equal(formats.dequantize(storage, formats.quantize(storage, back, given)), back)
    plain = {k: (v.float() if v.dtype == torch.float8_e4m3fn else v).numpy() for k, v in t.items()}
    for kind in np.float32, np.float64:
        same = formats.dequantize(storage, t, getattr(torch, kind.__name__))
        assert np.array_equal(formats.dequantize(storage, plain, kind), same.numpy())


def test_block_scales_of_every_dialect():
    torch.manual_seed(3)
    t = formats.quantize('fp8_block', torch.randn(256, 130))
    flat = t['weight_scale'].reshape(2, 2)
    for scales in dict(weight_scale=t['weight_scale']), dict(weight_scale=flat), dict(weight_scale_inv=flat):
        got = formats.dequantize('fp8_block', dict(weight=t['weight'], **scales))
        assert torch.equal(got, formats.dequantize('fp8_block', t))
    with pytest.raises(CookError, match='block scales'):
        formats.dequantize('fp8_block', dict(weight=t['weight'], weight_scale=torch.ones(3, 2)))


def test_a_weight_of_zeros_stays_zero():
    for storage in STORAGES:
        t = formats.quantize(storage, torch.zeros(128, 128))
        assert not formats.dequantize(storage, t).any() and t['weight'].float().isfinite().all(), storage


def test_bits_say_what_a_code_is_worth():
    "Sign, exponent and mantissa, read by hand, give the code's value."
    for fmt, bias in (('e4m3', 7), ('e2m1', 1), ('e5m2', 15)):
        for code, value in enumerate(formats.code_values(fmt)):
            sign, exponent, mantissa = (int(p, 2) for p in formats.bits(fmt, code).split())
            m = mantissa / 2**int(fmt[3])
            by_hand = (-1)**sign * (2.**(exponent - bias) * (1 + m) if exponent else 2.**(1 - bias) * m)
            assert by_hand == value or not np.isfinite(value)
    assert formats.bits('e8m0', 130) == '10000010'


@pytest.mark.parametrize('storage', ['nvfp4', 'mxfp8'])
def test_inputs_are_rounded_as_weights_are(storage):
    torch.manual_seed(3)
    x = torch.randn(2, 5, 64, dtype=torch.bfloat16) * torch.logspace(-4, 2, 64).bfloat16()
    y, rows = formats.fake_blocks(storage, x), x.flatten(0, 1)
    assert y.shape == x.shape and y.dtype == x.dtype
    want = formats.dequantize(storage, formats.quantize(storage, rows)).bfloat16()
    assert torch.equal(y.flatten(0, 1), want)
    n = STORAGES[storage].block[1]
    loud = x.clone()
    loud[..., :n] *= 64 # another block's business
    assert torch.equal(formats.fake_blocks('mxfp8', loud)[..., 32:], formats.fake_blocks('mxfp8', x)[..., 32:])


def test_nvfp4_clips_what_calibration_did_not_see():
    x = torch.linspace(-8, 8, 32)[None]
    assert formats.fake_blocks('nvfp4', x, torch.tensor(4.)).abs().max() == 4
    assert formats.fake_blocks('nvfp4', x, torch.tensor(8.)).abs().max() == 8
    assert not formats.fake_blocks('nvfp4', torch.zeros(1, 16)).any()
