"""A new run against the gallery's: `python tests/bands.py runs/gpu` fails when a figure has left its band.

Runs are paired by recipe, size, model, text and device. Quality may differ by what chance explains, sizes hardly,
time by a third.
What was written with another schema is not compared, and fails with a sentence; other versions of packages are named.
"""
import json
import math
import sys
from pathlib import Path

from make_table import look

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT/'recipes/gallery'
SLOWER = 1.33  # of the same recipe on the same device: above that a person should look


def half_width(results, name):
    "Half of the 95 % interval of a statistic; 0 without one."
    low, high = look(results, f'quality.{name}_ci95', [0, 0])
    return (high - low) / 2


def relative(new, old, path, limit):
    "A sentence when two numbers differ by more than `limit`, relatively."
    a, b = look(new, path), look(old, path)
    if None not in (a, b) and abs(a / b - 1) > limit:
        yield f'{path} is {a:.6g}, was {b:.6g}: more than {limit:.1%} apart'


def by_chance(new, old, name, slack):
    "A sentence when a statistic differs by more than both intervals together explain, and `slack`."
    a, b = look(new, f'quality.{name}'), look(old, f'quality.{name}')
    if None not in (a, b):
        limit = math.hypot(half_width(new, name), half_width(old, name)) + slack
        if abs(a - b) > limit:
            yield f'quality.{name} is {a:.6g}, was {b:.6g}: more than {limit:.2g} apart'


def same_text(new, old):
    return look(new, 'quality.sha256') == look(old, 'quality.sha256')


def deviations(new, old):
    "What has left its band, a sentence each."
    schemas = [results.get('schema', 1) for results in (old, new)]
    if schemas[0] != schemas[1]:
        return [f"the gallery's run has schema {schemas[0]}, this one {schemas[1]}: run the older one anew"]
    found = []
    if look(new, 'quality.verdict') != look(old, 'quality.verdict'):
        found.append(f"the verdict is {look(new, 'quality.verdict')}, was {look(old, 'quality.verdict')}")
    if same_text(new, old):
        found += relative(new, old, 'quality.ppl_base', .002)
    found += by_chance(new, old, 'ppl_ratio', 5e-4)
    found += by_chance(new, old, 'kld_mean', .05 * look(old, 'quality.kld_mean', 0))
    found += by_chance(new, old, 'top1_agreement', .002)
    found += relative(new, old, 'size_bytes.quantized', .01)
    a, b = look(new, 'seconds.total'), look(old, 'seconds.total')
    if None not in (a, b) and a > SLOWER * b and a > b + 5:
        found.append(f'seconds.total is {a:.1f}, was {b:.1f}: more than {SLOWER} times as long')
    return found


def versions(new, old):
    "Packages that differ, a sentence each: no failure, but often the reason for one."
    for name in 'torch', 'transformers', 'modelopt', 'tensorrt_llm':
        a, b = (look(results, f'environment.{name}') for results in (new, old))
        if a != b:
            yield f"(made with {name} {a or 'absent'}, the gallery's with {b or 'absent'})"


def key(results):
    paths = 'recipe', 'size', 'model.name', 'parameters.text', 'environment.device.name'
    return tuple(look(results, path) for path in paths)


def read_all(folder):
    "{key: (path, results)} of all finished runs below a folder."
    found = {}
    for path in sorted(Path(folder).rglob('results.json')):
        results = json.loads(path.read_text(encoding='utf-8'))
        found[key(results)] = path, results
    return found


def main(folder, gallery=GALLERY):
    "Compare, print, and return the exit code."
    old, new = read_all(gallery), read_all(folder)
    code = 0
    for k, (path, results) in new.items():
        if k not in old:
            print(f'{path.parent}: nothing like it in the gallery')
            continue
        left = deviations(results, old[k][1])
        out = bool(left)
        code = code or out
        left += versions(results, old[k][1])
        print(f'{path.parent}: ' + ('OUT OF ITS BANDS' if out else 'within its bands'), *left, sep='\n  ')
    return int(code)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
