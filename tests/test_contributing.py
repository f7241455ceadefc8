"CONTRIBUTING.md is followed to the letter: its scheme, its GPU and its recipe work as they stand there."
import re

import pytest

from make_readme import ROOT
from tqcook import contract, data, device, export, quantize, runtime, schemes

TEXT = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')


def block(language):
    "The only block of code in this language."
    (found,) = re.findall(rf'```{language}\n(.*?)```', TEXT, re.S)
    return found


@pytest.fixture
def scheme(monkeypatch):
    "The scheme that the page adds."
    record = eval(block('python').strip().rstrip(','), vars(schemes))
    monkeypatch.setitem(schemes.SCHEMES, record.name, record)
    return record


def test_it_can_be_read_in_one_sitting():
    assert len(TEXT.splitlines()) <= 70


def test_a_scheme_takes_at_most_ten_lines(scheme, demo, tmp_path):
    "The record alone quantizes, exports, passes the check and runs from the file that it made."
    assert len(block('python').splitlines()) <= 10 and scheme.name not in (ROOT/'nbs/03_schemes.ipynb').read_text()
    text = data.corpus('code', demo.tokenizer, context=128, max_windows=4)
    quantized = quantize.quantize(demo, text, scheme.name, progress=False)
    folder = export.export(quantized, tmp_path/'checkpoint')
    assert contract.check(folder).ok
    assert runtime.load(str(folder), device='cpu').scheme == schemes.scheme_of(scheme.quant_algo)


def test_a_gpu_is_one_line():
    line = block('text').strip()
    key = line.split('|')[0].strip()
    assert len(line.splitlines()) == 1 and line in (ROOT/'nbs/02_device.ipynb').read_text()
    assert device.lookup(key).name.endswith(line.split('|')[1].strip())
