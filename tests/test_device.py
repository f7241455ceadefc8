"The table of GPUs against what drivers report, names in any spelling, and what is asked for and not here."
import pytest

from tqcook import device, schemes
from tqcook.core import CookError
from tqcook.device import DEVICES, Device, lookup

ASKED = '''t4 v100 a100-40 a100 a10 a30 a40 rtx3090 l4 l40s rtx4090 rtx6000ada h100pcie h100 h100nvl h200 gh200 h20
    b200 b300 gb200 rtx5090 rtxpro6000 gb10 thor'''.split()


def test_the_table_is_whole():
    assert set(DEVICES) == set(ASKED)
    for key, d in DEVICES.items():
        assert d.source.startswith('NVIDIA') and d.arch != f'sm{d.sm}' and 1e11 < d.bandwidth < 1e13 and not d.here, key
        assert d.rate('bf16') and d.rate('bf16') == d.rate('fp16'), key # one 16-bit format stands for the other
        assert ('fp8' in d.flops) == (d.sm >= 89) and ('fp4' in d.flops) == (d.sm >= 100), key
        assert ('int8' in d.flops) == (d.sm >= 75), key
        if 'fp8' in d.flops:
            assert d.flops['fp8'] == pytest.approx(2 * d.flops['bf16'], rel=.02), key


@pytest.mark.parametrize(
    'key, memory',
    [
        ('h100', 85_520_809_984),
        ('h200', 150.8e9),
        ('a100', 85.9e9),
        ('a100-40', 42.95e9),
        ('l4', 24.15e9),
        ('l40s', 48.3e9),
        ('a10', 24.15e9),
        ('b200', 192.3e9),
    ],
)
def test_memory_is_what_the_driver_reports(key, memory):
    assert DEVICES[key].memory_bytes == pytest.approx(memory, rel=5e-4)


def test_figures_that_are_easily_confused():
    assert DEVICES['b200'].bandwidth == 7.7e12 and DEVICES['gb200'].bandwidth == 8e12
    assert DEVICES['b300'].flops['int8'] < DEVICES['b200'].flops['int8'] / 20
    assert set(DEVICES['gb10'].flops) == {'bf16', 'fp8', 'int8', 'fp4'} and DEVICES['t4'].rate('bf16') == 65e12
    assert DEVICES['t4'].rate('fp8') is None


def test_a_named_and_a_detected_gpu_are_one(monkeypatch):
    torch = pytest.importorskip('torch')
    smi = dict(name='NVIDIA H200', memory_bytes=143771 * 2**20, driver='580.1', sm=90)
    properties = type('P', (), dict(name='NVIDIA H200', major=9, minor=0, total_memory=143771 * 2**20))
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda i: properties)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(device, 'nvidia_smi', lambda: [smi])
    here, named = device.detect('cuda:1'), lookup('h200')
    assert here.here and here.index == 1 and here.torch == 'cuda:1' and 'driver 580.1' in str(here)
    assert (here.memory_bytes, here.flops, here.bandwidth) == (named.memory_bytes, named.flops, named.bandwidth)
    assert named.driver is None # the table is not changed by what is found
    with pytest.raises(CookError, match='2 GPUs: cuda:0 to cuda:1'):
        device.detect('cuda:2')


@pytest.mark.parametrize('name, key', [('H100', 'h100'), ('nvidia h200', 'h200'), ('NVIDIA A100-SXM4-40GB', 'a100-40'),
                                       ('rtx_4090', 'rtx4090'), ('Tesla T4', 't4'), ('GeForce RTX 5090', 'rtx5090'),
                                       ('a100-40', 'a100-40'), ('NVIDIA GB10', 'gb10')])
def test_names_in_any_spelling(name, key):
    assert lookup(name) is DEVICES[key]


def test_gpus_that_are_not_in_the_table():
    unknown = lookup('sm87')
    assert unknown.arch == 'Ampere' and not unknown.memory_bytes and unknown.rate('bf16') is None
    assert schemes.runs_on('int8_sq', unknown).native and schemes.runs_on('fp8', unknown).how == 'fake'
    for bad in 'h10', 'sm42', 'sm', '', 'radeon', None:
        with pytest.raises(CookError, match='no GPU named'):
            lookup(bad)


def test_what_is_not_here():
    assert device.detect('cpu').kind == 'cpu' and device.detect(DEVICES['l4']) is DEVICES['l4']
    for bad in 'gpu', 'cuda:x', 'cuda:', 'CUDA:-1', None:
        with pytest.raises(CookError, match='expected'):
            device.detect(bad)
    if not device._torch_gpus()[0]:
        with pytest.raises(CookError, match='was asked for, but'):
            device.detect('cuda')


def test_what_is_unknown_is_left_out():
    found = Device('x', 'cpu', memory_bytes=8).to_dict()
    assert found == dict(name='x', kind='cpu', index=0, memory_bytes=8, here=False, arch='CPU')
