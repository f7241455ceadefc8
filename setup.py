"""Package metadata, read from settings.ini (the one home of it)."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=['='])
parser.read(here / 'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

name = cfg['lib_name']
licenses = {'apache2': 'Apache-2.0'}
minors = range(int(cfg['min_python'].split('.')[1]), int(cfg['max_python'].split('.')[1]) + 1)
readme = here / 'README.md'


def requirements(key):
    """The requirements under `key`, one string each; specifiers hold no blanks."""
    return cfg.get(key, '').split()


extras = {extra: requirements(f'{extra}_requirements') for extra in cfg['extras'].split()}

setup(
    name=name,
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    author=cfg['author'],
    keywords=cfg['keywords'],
    license=licenses[cfg['license']],
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Developers',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{m}' for m in minors),
    ],
    packages=find_packages(include=[name, f'{name}.*']),
    package_data={name: ['demo/*', '*.toml', '*.json', '*.css', '*.txt']},
    include_package_data=False,
    install_requires=requirements('requirements'),
    extras_require=extras,
    python_requires=f">={cfg['min_python']}",
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{name}={name}._modidx:d']},
    zip_safe=False,
)
