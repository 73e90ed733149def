"""The public names, and what importing them costs."""

import inspect
import subprocess
import sys

import pytest

import resrepro


def test_the_public_names_are_these_and_all_are_documented():
    assert resrepro.__all__ == ["build_net", "compare", "evaluate", "load_net", "load_runs", "plot", "train"]
    for name in resrepro.__all__:
        thing = getattr(resrepro, name)
        assert inspect.isfunction(thing), name
        assert len(inspect.getdoc(thing)) > 60
        assert name in dir(resrepro)


def test_importing_every_submodule_leaves_the_public_names_alone():
    code = (
        "import pkgutil, importlib, inspect, resrepro\n"
        "for m in pkgutil.walk_packages(resrepro.__path__, 'resrepro.'):\n"
        "    m.name.endswith('__main__') or importlib.import_module(m.name)\n"
        "assert all(inspect.isfunction(getattr(resrepro, n)) for n in resrepro.__all__)\n"
    )
    call = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert call.returncode == 0, call.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        resrepro.frobnicate  # noqa: B018
